package org.phi3mobile

import kotlinx.coroutines.CancellationException
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.flow
import kotlinx.coroutines.runBlocking
import kotlinx.coroutines.withContext
import java.io.File
import java.util.concurrent.atomic.AtomicBoolean

/** A conversation over a model: [Phi3Model.session] makes it. Any number may be open; closing the model ends them all. */
public class Session internal constructor(
    private val model: Phi3Model,
    private val system: String?,
    private val generation: Generation,
    history: List<Message>,
    private val tools: List<Tool>,
) {
    private val answering = AtomicBoolean(false)

    /** Whether the answer is to end: it may not have begun in the library, which forgets what was cancelled before. */
    @Volatile
    internal var stopping: Boolean = false

    /** What was said, without the system message. A stopped answer is in it as far as it was collected. */
    @Volatile
    public var history: List<Message> = checked(history)
        private set

    /**
     * Sends a message; the answer's events come while they are collected, no faster. Cancelling the collection stops the work within
     * a token. Functions that the answer asks for are called, and the model goes on with what they gave, up to 8 times. Throws
     * Phi3Exception while collecting: the message does not fit or is empty, the engine failed; then the history is as before. A
     * stopped answer that said nothing leaves no trace either. [pictures]: what the message shows, for models that see.
     */
    @JvmOverloads
    public fun send(message: String, generation: Generation = this.generation, pictures: List<Picture> = emptyList()): Flow<Event> = flow {
        begin()
        val before = history
        val turn = arrayListOf(Message("user", message, pictures = pictures.toList()))
        val said = StringBuilder()
        var settled = false // kept, or to be forgotten
        try {
            repeat(MOST_ROUNDS) {
                val calls = ArrayList<Event.ToolCall>()
                val request = { number: (Picture) -> Long ->
                    generation.request("messages" to whole(before + turn).map { Conversation.told(it, number) }, tools)
                }
                model.answer(this@Session, request) { event ->
                    if (event is Event.Text) said.append(event.text)
                    if (event is Event.ToolCall) calls += event
                    if (event is Event.Done && calls.isEmpty()) {
                        val silent = said.isEmpty() && event.statistics.finishReason == "cancelled"
                        history = if (silent) before else before + turn + Message("assistant", said.toString())
                        settled = true
                    }
                    if (event !is Event.Done || calls.isEmpty()) emit(event)
                }
                if (calls.isEmpty()) return@flow
                turn += Message("assistant", Json.write(calls.map { mapOf("name" to it.name, "arguments" to Json.parse(it.arguments, it.name)) }))
                for (call in calls) {
                    val result = called(call)
                    turn += Message("tool", result, call.name)
                    emit(Event.ToolResult(call.name, result))
                }
            }
            throw Phi3Exception("the model asked for functions $MOST_ROUNDS times and gave no answer: tell it less of them, or take another model")
        } catch (error: Phi3Exception) {
            settled = true
            throw error
        } finally {
            if (!settled && said.isNotEmpty()) history = before + turn + Message("assistant", said.toString())
            answering.set(false)
        }
    }

    private suspend fun called(call: Event.ToolCall): String = try {
        tools.first { it.name == call.name }.call.call(call.arguments)
    } catch (error: CancellationException) {
        throw error
    } catch (error: Exception) {
        "failed: ${error.message ?: error.javaClass.simpleName}"
    }

    /** Continues a text as it is, without chat template and history. */
    @JvmOverloads
    public fun complete(prompt: String, generation: Generation = this.generation): Flow<Event> = flow {
        begin()
        try {
            model.answer(this@Session, { generation.request("prompt" to prompt) }) { emit(it) }
        } finally {
            answering.set(false)
        }
    }

    /** Ends the running answer within a token; its flow gets Done with the reason "cancelled". From any thread. */
    public fun cancel() {
        if (!answering.get()) return
        stopping = true
        if (model.holder === this) model.cancel()
    }

    /** Takes back the last message and its answer; gives what was taken, nothing if there was none. */
    public fun undo(): List<Message> {
        idle()
        val last = history.indexOfLast { it.role == "user" }
        if (last < 0) return emptyList()
        return history.drop(last).also { history = history.take(last) }
    }

    /** Forgets what was said. */
    public fun clear() {
        idle()
        history = emptyList()
    }

    /**
     * Writes the conversation, and the KV cache where it is this session's, into a folder: conversation.json as `phi3mobile chat`
     * reads it, with its pictures, and conversation.json.state. [restore] goes on from there without prefilling what comes before the first
     * picture. Throws Phi3Exception: it can't be written.
     */
    public suspend fun save(folder: File) {
        idle()
        withContext(Dispatchers.IO) {
            if (!folder.isDirectory && !folder.mkdirs()) throw Phi3Exception("$folder can't be made: give a folder of the app's own")
            Conversation.write(File(folder, CONVERSATION), whole(history))
            File(folder, STATE).delete()
        }
        model.saveState(this, File(folder, STATE))
    }

    /**
     * Reads what [save] or `phi3mobile chat` wrote in the place of this conversation. Gives how many tokens need no prefill; 0 also
     * where the KV cache's file is missing, damaged or another bundle's: the answers are the same, the first comes later. [decode]
     * reads files of pictures that [save] does not write, such as the chat's JPEGs: Photos::decode. Throws Phi3Exception: no
     * conversation there, a picture that can't be read.
     */
    public suspend fun restore(folder: File, decode: ((ByteArray) -> Picture)? = null): Long {
        idle()
        val messages = withContext(Dispatchers.IO) { Conversation.read(File(folder, CONVERSATION), decode) }
        history = checked(messages.filter { it.role != "system" })
        val state = File(folder, STATE)
        return if (state.isFile) model.restoreState(this, state) else 0
    }

    /** Called for each event, in order; false stops the answer. */
    public fun interface Listener {
        /** Gives whether the answer goes on. */
        public fun onEvent(event: Event): Boolean
    }

    /** [send] for Java: blocks until the answer ends; the listener is called on this thread. Gives the whole answer. */
    @JvmOverloads
    public fun sendBlocking(message: String, generation: Generation = this.generation, listener: Listener = Listener { true }): String =
        sendBlocking(message, generation, emptyList(), listener)

    /** The same with pictures. */
    public fun sendBlocking(message: String, generation: Generation, pictures: List<Picture>, listener: Listener): String {
        val answer = StringBuilder()
        runBlocking {
            send(message, generation, pictures).collect { event ->
                if (event is Event.Text) answer.append(event.text)
                if (!listener.onEvent(event)) cancel()
            }
        }
        return answer.toString()
    }

    private fun begin() {
        if (!answering.compareAndSet(false, true)) throw Phi3Exception("this session answers another message: cancel it or wait")
        stopping = false
    }

    private fun idle() {
        if (answering.get()) throw Phi3Exception("this session is answering: cancel it or wait")
    }

    private fun whole(messages: List<Message>): List<Message> = listOfNotNull(system?.let { Message("system", it) }) + messages

    private companion object {
        const val CONVERSATION = "conversation.json"
        const val STATE = "conversation.json.state"
        const val MOST_ROUNDS = 8
        val SPOKEN = setOf("user", "assistant", "tool")

        fun checked(history: List<Message>): List<Message> {
            history.firstOrNull { it.role !in SPOKEN }?.let {
                throw Phi3Exception("a message of the history has the role ${it.role}: allowed are user, assistant and tool; the system message is given apart")
            }
            return history.toList()
        }
    }
}
