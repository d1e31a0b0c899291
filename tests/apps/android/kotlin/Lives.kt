package tests

import kotlinx.coroutines.flow.first
import org.phi3mobile.Engine
import org.phi3mobile.Generation
import org.phi3mobile.ModelOptions
import org.phi3mobile.ModelState
import org.phi3mobile.Phi3Model
import java.io.File
import java.nio.FloatBuffer

/** Bytes of this process that are its own. */
fun resident(): Long = File("/proc/self/statm").readText().split(' ').let { (it[1].toLong() - it[2].toLong()) * 4096 }

/** Says that token `said` follows whatever comes, and keeps account. */
class Parrot(private val vocab: Int, private val said: Int) : Engine {
    val calls = ArrayList<Pair<Int, Long>>()
    var closed = 0

    override fun forward(tokens: LongArray, position: Long, isLong: Boolean, logits: FloatBuffer) {
        calls += tokens.size to position
        same(logits.remaining(), tokens.size * vocab, "room for logits")
        for (row in tokens.indices) logits.put(row * vocab + said, 10f)
        for (row in tokens.indices) for (id in 0 until vocab) if (id != said) logits.put(row * vocab + id, -10f)
    }

    override fun close() {
        closed++
    }
}

val lives: Map<String, Check> = mapOf(
    "cycles" to { given ->
        // ARGUMENT: how many. Each opens, says two tokens, closes; memory stays what it was. Run with a heap that does not grow.
        val count = given.arguments[0].toInt()
        var before = 0L
        for (cycle in 0 until count) {
            val model = Phi3Model.open(given.bundle, given.options())
            same(model.session().answered("Hi", Generation(maxTokens = 2)).done.generatedTokens, 2L)
            model.close()
            model.state.first { it == ModelState.CLOSED }
            if (cycle == count / 3) {
                System.gc()
                before = resident()
            }
        }
        System.gc()
        val grown = resident() - before
        println("grown $grown bytes in ${count - count / 3} cycles")
        holds(grown < 4L shl 20, "memory grew by $grown bytes")
        val threads = Thread.getAllStackTraces().keys.count { it.name == "phi3mobile" && it.isAlive }
        holds(threads < 8, "$threads threads are left")
    },

    "closed" to { given ->
        val model = Phi3Model.open(given.bundle, given.options())
        val session = model.session(generation = Generation(maxTokens = null, repetition = true))
        var seen = 0
        val line = runCatching { session.send("Tell a story").collect { if (++seen == 3) model.close() } }.exceptionOrNull()
        println("closed while it answered: $line after $seen")
        model.state.first { it == ModelState.CLOSED }
        refused("closed", "open it again") { session.answered("Hi") }
        refused("closed") { model.load() }
        model.close()
        model.cancel()
        session.cancel()
    },

    "engine" to { given ->
        // ARGUMENT: vocabulary, a token's id, its text, and one that ends the answer.
        val vocab = given.arguments[0].toInt()
        val parrot = Parrot(vocab, given.arguments[1].toInt())
        val model = Phi3Model.open(given.bundle, ModelOptions(engine = { _, _ -> parrot }))
        val found = model.session().answered("Hi", Generation(maxTokens = 5, repetition = true, repetitionPenalty = 1.0))
        println("text ${quoted(found.text)}")
        same(found.done.generatedTokens, 5L)
        same(parrot.calls.last().first, 1)
        model.close()
        model.state.first { it == ModelState.CLOSED }
        same(parrot.closed, 1, "closed")

        var times = 0
        val failing = object : Engine {
            override fun forward(tokens: LongArray, position: Long, isLong: Boolean, logits: FloatBuffer) {
                times++
                throw IllegalStateException("the chip\nis 🔥 hot")
            }
        }
        Phi3Model.open(given.bundle, ModelOptions(engine = { _, _ -> failing })).use {
            val session = it.session()
            refused("IllegalStateException: the chip is 🔥 hot") { session.answered("Hi") }
            same(session.history.size, 0)
            refused("hot") { session.answered("Hi") }
            same(times, 2)
        }
        val closing = Parrot(vocab, 1)
        refused("manifest") { Phi3Model.open(given.scratch, ModelOptions(engine = { _, _ -> closing })) }
    },

    "errors" to { given ->
        refused("manifest.json", "export") { Phi3Model.open(File(given.scratch, "nowhere")) }
        refused("does not fit", "GB") { Phi3Model.open(given.bundle, ModelOptions(freeMemory = 1000)) }
        Phi3Model.open(given.bundle, given.options()).use { model ->
            val session = model.session()
            refused("empty") { session.answered(" ") }
            refused("temperature") { session.answered("Hi", Generation(temperature = -1.0)) }
            refused("top_k", "temperature") { session.answered("Hi", Generation(temperature = 0.0, topK = 3)) }
            refused("max_tokens") { session.answered("Hi", Generation(maxTokens = 0)) }
            refused("tokens") { session.answered("word ".repeat(5000)) }
            refused("finite") { session.answered("Hi", Generation(temperature = Double.NaN)) }
            refused("threads is 0") { model.useThreads(0) }
            same(session.history.size, 0)
            refused("conversation.json") { session.restore(File(given.scratch, "nowhere")) }
            same(model.state.value, ModelState.READY)
            session.answered("Hi", Generation(maxTokens = 3))
        }
    },

    // A bundle whose operators the library lacks, and no ExecuTorch package.
    "lacking" to { given ->
        println(refused("llama::", "org.pytorch:executorch-android:", "--recipe host") { Phi3Model.open(given.bundle) })
    },
)
