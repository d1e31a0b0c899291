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
import java.util.concurrent.atomic.AtomicBoolean

/**
 * A bundle, opened: weights and one KV cache, on a thread of its own. One answer is made at a time; sessions of one model take
 * turns, and whoever has the turn prefills what differs. Two models answer at once.
 */
public class Phi3Model private constructor(public val folder: File, public val manifest: Manifest, options: ModelOptions) : AutoCloseable {
    private val worker = Worker("phi3mobile")
    private val turn = Mutex()
    private val scope = CoroutineScope(SupervisorJob() + worker.dispatcher)
    private val states = MutableStateFlow(ModelState.LOADING)

    private val native = NativeModel(folder, manifest, options)
    private val unloadedState: File? = options.cache?.let { File(it, "kv-${digest(folder.absolutePath)}.state") }
    private var kept = false // the KV cache of an unloaded model lies in its file
    private val closed = AtomicBoolean(false)

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
        native.cancel()
    }

    /** Ends a running answer and gives the memory back, without waiting: [state] is CLOSED when it is back. From any thread. */
    override fun close() {
        if (closed.getAndSet(true)) return
        native.cancel()
        scope.cancel()
        worker.finish {
            native.close()
            states.value = ModelState.CLOSED
        }
    }

    /** Runs one answer of a session, its events to [show]. */
    internal suspend fun answer(session: Session, request: ((Picture) -> Long) -> String, show: suspend (Event) -> Unit) = turn.withLock {
        loaded()
        states.value = ModelState.ANSWERING
        try {
            holder = session
            worker.run({ cancel() }) { native.start(request) }
            if (session.stopping) cancel()
            do {
                val event = worker.run({ cancel() }) { native.next() }
                show(event)
            } while (event !is Event.Done)
        } finally {
            states.compareAndSet(ModelState.ANSWERING, ModelState.READY)
        }
    }

    /** The KV cache to a file, if it is this session's and the runtime is the library's; else nothing. Gives whether it was. */
    internal suspend fun saveState(session: Session, file: File): Boolean = turn.withLock {
        if (holder !== session) return false
        worker.run { native.save(file) }
    }

    /** Gives how many tokens the KV cache now holds; 0: the file was of no use. */
    internal suspend fun restoreState(session: Session, file: File): Long = turn.withLock {
        loaded()
        worker.run {
            holder = session
            native.restore(file)
        }
    }

    private suspend fun loaded() {
        if (closed.get()) throw Phi3Exception("the model is closed: open it again")
        worker.run {
            if (native.isOpen) return@run
            states.value = ModelState.LOADING
            try {
                native.open(threads)
                if (kept) unloadedState?.let { native.restore(it) }
                kept = false
            } finally {
                states.value = if (native.isOpen) ModelState.READY else ModelState.UNLOADED
            }
        }
    }

    private suspend fun unloadNow() = withContext(NonCancellable) {
        worker.run {
            if (!native.isOpen) return@run
            kept = unloadedState?.let { native.save(it) } ?: false
            native.close()
            states.value = ModelState.UNLOADED
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
