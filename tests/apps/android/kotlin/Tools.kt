package tests

import org.phi3mobile.Engine
import org.phi3mobile.Event
import org.phi3mobile.Generation
import org.phi3mobile.Message
import org.phi3mobile.ModelOptions
import org.phi3mobile.Phi3Model
import org.phi3mobile.Tool
import java.nio.FloatBuffer

/** Says the given tokens one after the other; each prefill of several tokens begins the next answer. */
class Script(private val vocab: Int, private val answers: List<List<Int>>) : Engine {
    private var answer = -1
    private var at = 0

    override fun forward(tokens: LongArray, position: Long, isLong: Boolean, logits: FloatBuffer) {
        if (tokens.size > 1) {
            answer++
            at = 0
        }
        for (index in 0 until tokens.size * vocab) logits.put(index, 0f)
        logits.put((tokens.size - 1) * vocab + answers[minOf(answer, answers.size - 1)][at++], 10f)
    }
}

/** ARGUMENTS: vocabulary, then the tokens of each answer, with commas. */
private fun Given.model() = ModelOptions(engine = { _, _ -> Script(arguments[0].toInt(), arguments.drop(1).map { it.split(',').map(String::toInt) }) })

val tools: Map<String, Check> = mapOf(
    "tools" to { given ->
        val asked = ArrayList<String>()
        val weather = Tool("weather", "Weather of a town", """{"type": "object", "properties": {"town": {"type": "string"}}}""") {
            asked += it
            "rain 🌧"
        }
        Phi3Model.open(given.bundle, given.model()).use { model ->
            val session = model.session(generation = Generation(repetition = true, temperature = 0.0), tools = listOf(weather))
            val found = session.answered("Do I need an umbrella?")
            println("text ${quoted(found.text)}")
            same(asked, listOf("""{"town":"Köln"}"""), "what was asked")
            same(
                found.events.filter { it is Event.ToolCall || it is Event.ToolResult },
                listOf(Event.ToolCall("weather", """{"town":"Köln"}"""), Event.ToolResult("weather", "rain 🌧")),
            )
            same(found.done.finishReason, "stop")
            same(found.events.count { it is Event.Done }, 1)
            same(session.history.map { it.role }, listOf("user", "assistant", "tool", "assistant"))
            same(session.history[2], Message("tool", "rain 🌧", "weather"))
            same(session.undo().size, 4)
        }
    },

    "guided" to { given ->
        Phi3Model.open(given.bundle, ModelOptions()).use { model ->
            val session = model.session()
            val schema = """{"type": "object", "properties": {"city": {"type": "string"}, "size": {"type": "integer"}}, "required": ["city", "size"]}"""
            val asked = Generation.Builder().maxTokens(40).schema(schema).build()
            println("text ${quoted(session.answered("A city?", asked).text)}")
            session.clear()
            println("text ${quoted(session.answered("Yes or no?", Generation(regex = "(yes|no)")).text)}")
            session.clear()
            println("text ${quoted(session.answered("Yes or no?", Generation(grammar = "start: \"a\" \"b\"")).text)}")
            session.clear()
            refused("not is not supported") { session.answered("A city?", Generation(schema = """{"not": {}}""")) }
            refused("give one of them") { session.answered("A city?", Generation(schema = "{}", regex = "a")) }
            refused("without a schema") { session.answered("A city?", Generation(additionalProperties = true)) }
            same(session.history.size, 0)
        }
    },

    "endless" to { given ->
        val failing = Tool("weather", "Fails") { throw IllegalStateException("no net") }
        Phi3Model.open(given.bundle, given.model()).use { model ->
            val session = model.session(generation = Generation(repetition = true, temperature = 0.0), tools = listOf(failing))
            val results = ArrayList<String>()
            refused("8 times") { session.send("Do I need an umbrella?").collect { if (it is Event.ToolResult) results += it.content } }
            same(results, List(8) { "failed: no net" })
            same(session.history.size, 0)
            refused("schema of x") { Tool("x", "", "{") { "" } }
            refused("1st") { model.session(tools = listOf(Tool("1st", "") { "" })).answered("Hi") }
        }
    },
)
