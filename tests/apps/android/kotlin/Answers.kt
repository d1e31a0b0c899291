package tests

import kotlinx.coroutines.CompletableDeferred
import kotlinx.coroutines.CoroutineStart
import kotlinx.coroutines.Job
import kotlinx.coroutines.async
import kotlinx.coroutines.cancelAndJoin
import kotlinx.coroutines.coroutineScope
import kotlinx.coroutines.flow.collect
import kotlinx.coroutines.flow.take
import kotlinx.coroutines.flow.toList
import kotlinx.coroutines.launch
import org.phi3mobile.Event
import org.phi3mobile.Generation
import org.phi3mobile.Message
import org.phi3mobile.ModelOptions
import org.phi3mobile.ModelState
import org.phi3mobile.Phi3Model
import java.io.File

fun Given.options() = ModelOptions(threads = 2, cache = File(scratch, "cache"))

val answers: Map<String, Check> = mapOf(
    // ARGUMENT: messages, sent one after the other. Prints the texts.
    "texts" to { given ->
        Phi3Model.open(given.bundle, given.options()).use { model ->
            val session = model.session("Be brief.", Generation(maxTokens = 24))
            for (message in given.arguments) {
                val found = session.answered(message)
                println("text ${quoted(found.text)} ${found.done.generatedTokens} ${found.done.reusedTokens}")
            }
            same(session.history.map { it.content }.filterIndexed { index, _ -> index % 2 == 0 }, given.arguments, "history")
        }
    },

    "sampled" to { given ->
        Phi3Model.open(given.bundle, given.options()).use { model ->
            val generation = Generation(maxTokens = 24, temperature = 0.8, topK = 40, topP = 0.95, seed = 7, repetitionPenalty = 1.1)
            println("text ${quoted(model.session(generation = generation).answered(given.arguments[0]).text)}")
        }
    },

    "emoji" to { given ->
        // Surrogate pairs, combining marks and NUL cross in both directions: the prompt comes back from the model's own tokenizer.
        Phi3Model.open(given.bundle, given.options()).use { model ->
            val generation = Generation(maxTokens = 8, stop = listOf("👩🏽‍🚀", "\u0000"))
            val message = "A 😀 é 👩🏽‍🚀 \uD83C\uDDE9\uD83C\uDDEA 中"
            val session = model.session(generation = generation)
            session.answered(message)
            same(session.history[0].content, message)
            val folder = File(given.scratch, "é 😀").apply { mkdirs() }
            session.save(folder)
            val other = model.session()
            other.restore(folder)
            same(other.history, session.history)
        }
    },

    "cancel" to { given ->
        Phi3Model.open(given.bundle, given.options()).use { model ->
            val session = model.session(generation = Generation(maxTokens = null, repetition = true))
            // Three pieces are taken: the native side makes no fourth, and the next answer starts at once.
            val pieces = session.send("Tell a long story").take(3).toList()
            same(pieces.size, 3)
            same(session.history.size, if (pieces.any { it is Event.Text }) 2 else 0, "a stopped answer's history")
            same(session.history.last().content, pieces.filterIsInstance<Event.Text>().joinToString("") { it.text })
            same(model.state.value, ModelState.READY)
            session.clear()
            // The button: Done says so.
            var seen = 0
            val events = ArrayList<Event>()
            session.send("Tell a long story").collect {
                events += it
                if (it is Event.Text && ++seen == 2) session.cancel()
            }
            same((events.last() as Event.Done).statistics.finishReason, "cancelled")
            holds((events.last() as Event.Done).statistics.generatedTokens < 8, "it went on: ${events.size}")
            session.clear()
            // The button before the library has begun: another session has the turn until then. The answer ends within a token, and one
            // without a text leaves no trace.
            val early = ArrayList<Event>()
            coroutineScope {
                val waiting = model.session(generation = Generation(maxTokens = null, repetition = true))
                var job: Job? = null
                session.send("Tell a long story").collect {
                    if (job != null) return@collect
                    job = launch(start = CoroutineStart.UNDISPATCHED) { waiting.send("Tell a long story").collect { early += it } }
                    waiting.cancel()
                    session.cancel()
                }
                job!!.join()
                same((early.last() as Event.Done).statistics.finishReason, "cancelled")
                holds((early.last() as Event.Done).statistics.generatedTokens <= 1, "it went on: ${early.size}")
                same(waiting.history.size, if (early.any { it is Event.Text }) 2 else 0)
            }
            session.clear()
            // A collector that is cancelled from outside while the library works on.
            coroutineScope {
                val begun = CompletableDeferred<Unit>()
                val job = launch { session.send("Tell a long story").collect { begun.complete(Unit) } }
                begun.await()
                job.cancelAndJoin()
            }
            session.clear()
            same(session.answered("Hi", Generation(maxTokens = 4)).done.generatedTokens, 4L)
        }
    },

    "two" to { given ->
        // Two models at once, and two sessions of one that take turns: the same texts as alone.
        suspend fun alone(message: String) = Phi3Model.open(given.bundle, given.options()).use {
            it.session(generation = Generation(maxTokens = 16)).answered(message).text
        }
        val one = alone("What is a tree?")
        val two = alone("Count to ten")
        Phi3Model.open(given.bundle, given.options()).use { first ->
            Phi3Model.open(given.bundle, given.options()).use { second ->
                coroutineScope {
                    val generation = Generation(maxTokens = 16)
                    val found = List(4) { at ->
                        async(kotlinx.coroutines.Dispatchers.Default) {
                            val model = if (at % 2 == 0) first else second
                            model.session(generation = generation).answered(if (at < 2) "What is a tree?" else "Count to ten").text
                        }
                    }
                    same(found.map { it.await() }, listOf(one, one, two, two))
                }
            }
        }
    },

    "history" to { given ->
        Phi3Model.open(given.bundle, given.options()).use { model ->
            val session = model.session("S", Generation(maxTokens = 6))
            val first = session.answered("One")
            val second = session.answered("Two")
            holds(second.done.reusedTokens > first.done.promptTokens, "the first turn was prefilled again: ${second.done}")
            same(session.undo().map { it.role }, listOf("user", "assistant"))
            same(session.answered("Two").text, second.text, "after undo")
            same(session.undo().size + session.undo().size, 4)
            same(session.undo(), emptyList<Message>())
            same(session.history, emptyList<Message>())
            val given2 = model.session("S", Generation(maxTokens = 6), listOf(Message("user", "One"), Message("assistant", first.text)))
            same(given2.answered("Two").text, second.text, "a given history")
            refused("role", "critic") { model.session(history = listOf(Message("critic", "x"))) }
        }
    },

    "state" to { given ->
        val kept = File(given.scratch, "kept")
        val generation = Generation(maxTokens = 6)
        var next: Collected? = null
        Phi3Model.open(given.bundle, given.options()).use { model ->
            val session = model.session("S", generation)
            session.answered("One")
            session.save(kept)
            next = session.answered("Two")
        }
        Phi3Model.open(given.bundle, given.options()).use { model ->
            val session = model.session("S", generation)
            val tokens = session.restore(kept)
            holds(tokens > 0, "the KV cache did not come back")
            val found = session.answered("Two")
            same(found.text, next?.text)
            // Not always all that was kept: an answer's text may encode to other tokens than it was made of.
            same(found.done.reusedTokens, next?.done?.reusedTokens, "$tokens kept")
            holds(found.done.reusedTokens > tokens / 2, "prefilled again: $tokens kept, ${found.done}")
            // Unloaded and back, warm.
            model.unload()
            same(model.state.value, ModelState.UNLOADED)
            val third = session.answered("Three")
            holds(third.done.reusedTokens > found.done.reusedTokens, "cold after unload: ${third.done}")
            model.onTrimMemory(15)
            while (model.state.value != ModelState.UNLOADED) kotlinx.coroutines.delay(1)
            model.onTrimMemory(5)
            model.useThreads(1)
            same(model.threads, 1)
            holds(session.answered("Four").done.promptTokens > 0, "nothing was asked on one thread")
        }
        // A damaged state: the same text, prefilled.
        File(kept, "conversation.json.state").let { it.writeBytes(it.readBytes().copyOf(100)) }
        Phi3Model.open(given.bundle, given.options()).use { model ->
            val session = model.session("S", generation)
            same(session.restore(kept), 0L)
            same(session.answered("Two").text, next?.text)
        }
    },

    "java" to { given ->
        Phi3Model.openBlocking(given.bundle, given.options()).use { model ->
            val session = model.session()
            var seen = 0
            val text = session.sendBlocking("Hi", Generation.Builder().maxTokens(5).build()) { ++seen > 0 }
            holds(text.isNotEmpty() && seen > 1, "nothing came")
            session.sendBlocking("Hi", Generation(maxTokens = null, repetition = true)) { it !is Event.Text }
        }
    },
)

fun quoted(text: String): String = text.toByteArray().joinToString("") { "%02x".format(it) }
