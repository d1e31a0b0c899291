package tests

import org.phi3mobile.Engine
import org.phi3mobile.Json
import org.phi3mobile.Native
import org.phi3mobile.Phi3Exception
import java.io.File
import java.nio.FloatBuffer

private typealias Map_ = Map<*, *>

/** scenarios.ChainEngine: a row is a hash of its token, its place, its LongRoPE regime and the row before it. */
private class Chain(about: Map_, private val vocab: Int) : Engine {
    private val seed = about["seed"] as Long
    private val habit = (about["habit"] as Long?) ?: 8L
    private val original = about["original_context"] as Long?
    private val states = LongArray((about["max_context"] as Long).toInt())
    val calls = ArrayList<List<Any>>()

    override fun forward(tokens: LongArray, position: Long, isLong: Boolean, logits: FloatBuffer) {
        val long = isLong || (original != null && position + tokens.size > original)
        calls += listOf(position, tokens.toList(), long)
        for ((row, token) in tokens.withIndex()) {
            val at = position.toInt() + row
            val before = if (at > 0) states[at - 1] else 0L
            val state = mixed(before xor (token * K1 + at * K2 + (if (long) K3 else 0L) + seed))
            states[at] = state
            for (id in 0 until vocab) logits.put(row * vocab + id, (mixed(state + id * K1) ushr 40).toFloat() / (1 shl 20))
            for (likely in 0..1) {
                val id = row * vocab + ((5 * token + seed + likely) % vocab).toInt()
                logits.put(id, logits.get(id) + habit)
            }
        }
    }

    private fun mixed(given: Long): Long {
        var value = (given xor (given ushr 30)) * -0x40a7b892e31b1a47L
        value = (value xor (value ushr 27)) * -0x6b2fb644ecceee15L
        return value xor (value ushr 31)
    }

    private companion object {
        const val K1 = -0x61c8864680b583ebL
        const val K2 = -0x3d4d51c2d82b14b1L
        const val K3 = 0x165667B19E3779F9L
    }
}

private fun play(handle: Long, step: Map_): Map<String, Any?> {
    Native.start(handle, Json.write(step["request"]).toByteArray())
    val pieces = ArrayList<String>()
    val notes = ArrayList<Any?>()
    while (true) {
        val found = Native.next(handle)
        val text = String(found, 1, found.size - 1, Charsets.UTF_8)
        when (found[0].toInt()) {
            -1 -> throw Phi3Exception(text)
            0 -> return mapOf("text" to pieces.joinToString(""), "pieces" to pieces.size.toLong(), "notes" to notes, "statistics" to Json.parse(text, "it"))
            1 -> {
                pieces += text
                if (pieces.size.toLong() == step["cancel_after"]) Native.cancel(handle)
            }
            2 -> notes += (Json.parse(text, "it") as Map_)["message"]
        }
    }
}

/** ARGUMENT: tests/vectors/sessions.json. */
val vectors: Map<String, Check> = mapOf(
    "vectors" to { given ->
        Native.require()
        val all = Json.parse(File(given.arguments[0]).readText(), "the vectors") as Map_
        var compared = 0
        for (scenario in (all["scenarios"] as List<*>).map { it as Map_ }) {
            val folder = File(given.scratch, "${scenario["number"]}").apply { mkdirs() }
            for ((name, text) in all["files"] as Map_) File(folder, name as String).writeText(text as String)
            val manifest = scenario["manifest"] as Map_
            File(folder, "manifest.json").writeText(Json.write(manifest))
            val vocab = ((manifest["model"] as Map_)["vocab"] as Long)
            val engine = Chain(scenario["engine"] as Map_, vocab.toInt())
            val handle = Native.openWith(folder.path.toByteArray(), engine, vocab)
            val wanted = (scenario["answers"] as List<*>).iterator()
            for (step in (scenario["steps"] as List<*>).map { it as Map_ }) {
                engine.calls.clear()
                // A step may both reset and ask: asking comes with the next one.
                if (step["reset"] == true) {
                    Native.reset(handle)
                    continue
                }
                val expected = wanted.next() as Map_
                val what = "scenario ${scenario["number"]}"
                val found = try {
                    play(handle, step)
                } catch (error: Phi3Exception) {
                    holds(expected["refused"] == true, "$what: ${error.message}")
                    compared++
                    continue
                }
                for (name in listOf("text", "pieces", "notes")) same(found[name], expected[name], "$what, $name")
                val counted = found["statistics"] as Map_
                for ((name, value) in expected["statistics"] as Map_) same(counted[name], value, "$what, $name")
                same(engine.calls, expected["forwards"], "$what, forwards")
                compared++
            }
            holds(!wanted.hasNext(), "an answer is left")
            Native.close(handle)
        }
        println("compared $compared")
    },
)
