package org.phi3mobile

import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.NonCancellable
import kotlinx.coroutines.SupervisorJob
import kotlinx.coroutines.cancel
import kotlinx.coroutines.flow.MutableStateFlow
import kotlinx.coroutines.flow.StateFlow
import kotlinx.coroutines.flow.asStateFlow
import kotlinx.coroutines.launch
import kotlinx.coroutines.runBlocking
import kotlinx.coroutines.sync.Mutex
import kotlinx.coroutines.sync.withLock
import kotlinx.coroutines.withContext
import java.io.File
import java.security.MessageDigest
import java.util.WeakHashMap

/** What a model does now. */
public enum class ModelState { LOADING, READY, ANSWERING, UNLOADED, CLOSED }

/** How a model is opened. */
public class ModelOptions @JvmOverloads constructor(
    /** Of the process's one thread pool; 0: the big cores. */
    public val threads: Int = 0,
    /** Where packed weights are kept, about as large as the program (null: packed at every start), and the KV cache of an unloaded
     * model. The app's cache folder is right: what the system removes is made again. */
    public val cache: File? = null,
    /** Bytes of memory that are free: a bundle that needs more is refused. Null: not checked. */
    public val freeMemory: Long? = null,
    /** Makes a runtime of the app's own for this bundle; null: the library's, or ExecuTorch's package where it has what the library
     * lacks. Called again after [Phi3Model.unload]. */
    public val engine: ((Manifest, File) -> Engine)? = null,
    /** Crops of a picture at most, for models that see: 4 is enough for most photos, 16 for small print, which takes four times as long.
     * Null: the model's own number. */
    public val numCrops: Int? = null,
)

/**
 * A bundle, opened: weights and one KV cache, on a thread of its own. One answer is made at a time; sessions of one model take
 * turns, and whoever has the turn prefills what differs. Two models answer at once.
 */
public class Phi3Model private constructor(public val folder: File, public val manifest: Manifest, private val options: ModelOptions) : AutoCloseable {
    private val worker = Worker("phi3mobile")
    private val turn = Mutex()
    private val scope = CoroutineScope(SupervisorJob() + worker.dispatcher)
    private val states = MutableStateFlow(ModelState.LOADING)

    // 0: not loaded. Written on the worker's thread, under the lock of itself: cancel comes from others.
    private val lock = Any()
    private var handle = 0L
    private val numbers = WeakHashMap<Picture, Long>() // of pictures that the handle was given
    private var kept = false // the KV cache of an unloaded model lies in its file

    @Volatile
    private var closed = false

    /** Threads that were asked for. */
    @Volatile
    public var threads: Int = if (options.threads > 0) options.threads else Cores.big()
        private set

    /** What the model does now. UNLOADED comes back by itself with the next message. */
    public val state: StateFlow<ModelState> get() = states.asStateFlow()

    /** The session whose sequence the KV cache holds. */
    internal var holder: Session? = null

    /** A new conversation. [history]: what was said before, without the system message. [tools]: functions that answers may use. */
    @JvmOverloads
    public fun session(
        system: String? = null,
        generation: Generation = Generation(),
        history: List<Message> = emptyList(),
        tools: List<Tool> = emptyList(),
    ): Session = Session(this, system, generation, history, tools)

    /**
     * Gives the memory back: the KV cache goes to a file in the cache folder, if there is one. The next message opens the model again,
     * warm: weights from the packed file, the KV cache from its own. Waits for a running answer.
     */
    public suspend fun unload(): Unit = turn.withLock { unloadNow() }

    /** Opens an unloaded model now, not with the next message. */
    public suspend fun load(): Unit = turn.withLock { loaded() }

    /** Another size of the process's thread pool, such as fewer when the phone is hot: unloads, and the next message loads. */
    public suspend fun useThreads(count: Int): Unit = turn.withLock {
        if (count < 1) throw Phi3Exception("threads is $count: give 1 or more")
        if (count != threads) {
            unloadNow()
            threads = count
        }
    }

    /**
     * For Application.onTrimMemory: unloads where the system says that it looks for memory and no answer is running. Returns at once.
     */
    public fun onTrimMemory(level: Int) {
        if (!Memory.shouldUnload(level)) return
        scope.launch {
            if (!turn.tryLock()) return@launch
            try {
                unloadNow()
            } finally {
                turn.unlock()
            }
        }
    }

    /** Ends the running answer within a token: its flow gets Done with the reason "cancelled". From any thread. */
    public fun cancel() {
        holder?.stopping = true
        synchronized(lock) { if (handle != 0L) Native.cancel(handle) }
    }

    /** Ends a running answer and gives the memory back, without waiting: [state] is CLOSED when it is back. From any thread. */
    override fun close() {
        synchronized(lock) {
            if (closed) return
            closed = true
            if (handle != 0L) Native.cancel(handle)
        }
        scope.cancel()
        worker.finish {
            drop()
            states.value = ModelState.CLOSED
        }
    }

    /** Runs one answer of a session, its events to [show]. */
    internal suspend fun answer(session: Session, request: ((Picture) -> Long) -> String, show: suspend (Event) -> Unit) = turn.withLock {
        loaded()
        states.value = ModelState.ANSWERING
        try {
            holder = session
            worker.run({ cancel() }) { Native.start(handle, request(::number).toByteArray()) }
            if (session.stopping) cancel()
            do {
                val event = event(worker.run({ cancel() }) { Native.next(handle) })
                show(event)
            } while (event !is Event.Done)
        } finally {
            states.compareAndSet(ModelState.ANSWERING, ModelState.READY)
        }
    }

    /** The KV cache to a file, if it is this session's and the runtime is the library's; else nothing. Gives whether it was. */
    internal suspend fun saveState(session: Session, file: File): Boolean = turn.withLock {
        if (holder !== session) return false
        worker.run { saved(file) }
    }

    /** Gives how many tokens the KV cache now holds; 0: the file was of no use. */
    internal suspend fun restoreState(session: Session, file: File): Long = turn.withLock {
        loaded()
        worker.run {
            holder = session
            restored(file)
        }
    }

    private suspend fun loaded() {
        if (closed) throw Phi3Exception("the model is closed: open it again")
        worker.run {
            if (handle != 0L) return@run
            states.value = ModelState.LOADING
            try {
                val opened = openNative()
                synchronized(lock) { handle = opened }
                if (kept) unloadedState?.let { restored(it) }
                kept = false
            } finally {
                states.value = if (handle != 0L) ModelState.READY else ModelState.UNLOADED
            }
        }
    }

    private suspend fun unloadNow() = withContext(NonCancellable) {
        worker.run {
            if (handle == 0L) return@run
            kept = unloadedState?.let { saved(it) } ?: false
            drop()
            states.value = ModelState.UNLOADED
        }
    }

    // On the worker's thread, all of them.

    private fun openNative(): Long {
        val path = folder.path.toByteArray()
        val engine = options.engine?.invoke(manifest, folder) ?: EngineChoice.of(manifest, folder, threads)
        if (engine != null) return Native.openWith(path, engine, manifest.vocab)
        val given = linkedMapOf<String, Any?>("threads" to threads)
        options.numCrops?.let { given["num_crops"] = it }
        options.cache?.let {
            it.mkdirs()
            given["cache"] = it.path
        }
        return Native.open(path, Json.write(given).toByteArray())
    }

    private fun number(picture: Picture): Long = numbers.getOrPut(picture) {
        Native.picture(handle, picture.pixels, picture.width, picture.height, picture.channels, picture.orientation)
    }

    private fun drop() {
        numbers.clear()
        val old = synchronized(lock) { handle.also { handle = 0L } }
        if (old != 0L) Native.close(old)
    }

    private fun saved(file: File): Boolean = try {
        handle != 0L && Native.save(handle, file.path.toByteArray()) >= 0
    } catch (error: Phi3Exception) {
        file.delete()
        false // an engine of the app's keeps its own; a full disk: prefilling again gives the same
    }

    private fun restored(file: File): Long = try {
        Native.restore(handle, file.path.toByteArray())
    } catch (error: Phi3Exception) {
        file.delete()
        0
    }

    private val unloadedState: File? = options.cache?.let { File(it, "kv-${digest(folder.absolutePath)}.state") }

    private fun event(found: ByteArray): Event {
        val text = String(found, 1, found.size - 1, Charsets.UTF_8)
        return when (found[0].toInt()) {
            -1 -> throw Phi3Exception(text)
            0 -> Event.Done(Statistics.of(text))
            1 -> Event.Text(text)
            2 -> note(Json.parse(text, "a note") as Map<*, *>)
            4 -> {
                val call = Json.parse(text, "a call") as Map<*, *>
                Event.ToolCall(call["name"] as String, Json.write(call["arguments"]))
            }
            else -> {
                val progress = Json.parse(text, "the progress") as Map<*, *>
                Event.Progress(progress["done"] as Long, progress["total"] as Long)
            }
        }
    }

    private fun note(given: Map<*, *>): Event {
        val message = given["message"] as String
        return when (val kind = given["kind"] as String) {
            "long_switch" -> Event.LongRopeSwitch(message)
            "window" -> Event.WindowSlid(message)
            else -> Event.Note(kind, message)
        }
    }

    public companion object {
        /**
         * Opens a bundle's folder: seconds the first time, while weights are packed into the cache. Throws Phi3Exception: what is
         * wrong with the bundle, what this device or this app lacks.
         */
        public suspend fun open(folder: File, options: ModelOptions = ModelOptions()): Phi3Model {
            val manifest = withContext(kotlinx.coroutines.Dispatchers.IO) { Manifest.of(folder) }
            Native.require()
            if (options.freeMemory != null && manifest.needs > options.freeMemory) {
                val sizes = Memory.sentence(manifest, options.freeMemory)
                throw Phi3Exception("${manifest.name} does not fit: $sizes; close other apps or choose a smaller model")
            }
            val model = Phi3Model(folder, manifest, options)
            try {
                model.load()
            } catch (error: Throwable) {
                model.close()
                throw error
            }
            return model
        }

        /** [open] for Java: blocks, so not on the main thread. */
        @JvmStatic
        @JvmOverloads
        public fun openBlocking(folder: File, options: ModelOptions = ModelOptions()): Phi3Model = runBlocking { open(folder, options) }

        private fun digest(text: String): String =
            MessageDigest.getInstance("SHA-256").digest(text.toByteArray()).take(8).joinToString("") { "%02x".format(it) }
    }
}
