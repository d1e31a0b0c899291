package org.phi3mobile

/** How an answer is made. What is null is the bundle's own choice. */
public data class Generation(
    /** Null: no limit but the context. */
    val maxTokens: Int? = 512,
    /** Texts that end the answer. */
    val stop: List<String> = emptyList(),
    /** When the context is full: false ends the answer, true keeps the system message, drops the oldest turns and goes on. */
    val slide: Boolean = true,
    /** Draft by quoting prompt and answer: the same text, faster where it quotes. */
    val lookup: Boolean = false,
    /** Let an answer repeat itself for ever; else it is ended. */
    val repetition: Boolean = false,
    /** 0: greedy; above: how far the probabilities are flattened. */
    val temperature: Double? = null,
    /** So many of the likeliest tokens are drawn from; 0: all. */
    val topK: Int? = null,
    /** The likeliest tokens that together have this probability are drawn from; 1: all. */
    val topP: Double? = null,
    /** Tokens below this share of the likeliest one's probability are not drawn; 0: all are. */
    val minP: Double? = null,
    /** Divides the logits of tokens that were there already; 1: none. */
    val repetitionPenalty: Double? = null,
    /** The same seed draws the same answer; null: another one each time. */
    val seed: Long? = null,
    /**
     * A JSON schema: the answer is valid under it, and whole within [maxTokens] and the context. Greedy where nothing else is said.
     * This, [regex] and [grammar] exclude each other and tools; they need libllguidance.so in the app (docs/android.md).
     */
    val schema: String? = null,
    /** Objects of [schema] that declare names may have others where it does not say. */
    val additionalProperties: Boolean = false,
    /** What the whole answer matches, in Rust's syntax without lookaround. */
    val regex: String? = null,
    /** A Lark grammar in llguidance's dialect, with a rule `start`. */
    val grammar: String? = null,
) {
    /** All defaults, for Java. */
    public constructor() : this(512)

    /** For Java: `new Generation.Builder().maxTokens(64).build()`. Each sets what [Generation] has by its name. */
    public class Builder {
        private var made = Generation()

        public fun maxTokens(value: Int?): Builder = apply { made = made.copy(maxTokens = value) }
        public fun stop(vararg texts: String): Builder = apply { made = made.copy(stop = texts.toList()) }
        public fun slide(value: Boolean): Builder = apply { made = made.copy(slide = value) }
        public fun lookup(value: Boolean): Builder = apply { made = made.copy(lookup = value) }
        public fun repetition(value: Boolean): Builder = apply { made = made.copy(repetition = value) }
        public fun temperature(value: Double?): Builder = apply { made = made.copy(temperature = value) }
        public fun topK(value: Int?): Builder = apply { made = made.copy(topK = value) }
        public fun topP(value: Double?): Builder = apply { made = made.copy(topP = value) }
        public fun minP(value: Double?): Builder = apply { made = made.copy(minP = value) }
        public fun repetitionPenalty(value: Double?): Builder = apply { made = made.copy(repetitionPenalty = value) }
        public fun seed(value: Long?): Builder = apply { made = made.copy(seed = value) }
        public fun schema(value: String?): Builder = apply { made = made.copy(schema = value) }
        public fun additionalProperties(value: Boolean): Builder = apply { made = made.copy(additionalProperties = value) }
        public fun regex(value: String?): Builder = apply { made = made.copy(regex = value) }
        public fun grammar(value: String?): Builder = apply { made = made.copy(grammar = value) }

        /** What was set, and defaults for the rest. */
        public fun build(): Generation = made
    }

    internal fun request(prompt: Pair<String, Any>, tools: List<Tool> = emptyList()): String {
        val all = linkedMapOf<String, Any?>(prompt, "max_tokens" to maxTokens)
        if (stop.isNotEmpty()) all["stop"] = stop
        if (tools.isNotEmpty()) all["tools"] = tools.map { it.told }
        if (slide && prompt.first == "messages") all["overflow"] = "slide"
        if (lookup) all["lookup"] = true
        if (repetition) all["repetition"] = true
        val sampling = mapOf(
            "temperature" to temperature, "top_k" to topK, "top_p" to topP, "min_p" to minP,
            "repetition_penalty" to repetitionPenalty, "seed" to seed,
        )
        val guide = mapOf("schema" to schema, "regex" to regex, "grammar" to grammar)
        if (additionalProperties) all["additional_properties"] = true
        (sampling + guide).filterValues { it != null }.forEach { (name, value) -> all[name] = value }
        return Json.write(all)
    }
}
