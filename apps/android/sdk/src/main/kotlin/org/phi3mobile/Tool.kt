package org.phi3mobile

/**
 * A function that an answer may ask for. [parameters]: the JSON schema of its arguments, an object; the model is told, and can break
 * it only in an app without libllguidance.so. [call] gets the arguments as JSON and gives what the model reads; an exception of it is told the model as a failure.
 */
public class Tool @JvmOverloads constructor(
    public val name: String,
    public val description: String,
    public val parameters: String = """{"type": "object", "properties": {}}""",
    public val call: Call,
) {
    /** Called in the collector's coroutine. */
    public fun interface Call {
        /** [arguments]: a JSON object. Gives what the model reads. */
        public suspend fun call(arguments: String): String
    }

    internal val told: Map<String, Any?> =
        mapOf("name" to name, "description" to description, "parameters" to Json.parse(parameters, "the schema of $name"))
}
