package org.phi3mobile

import java.io.File
import java.util.WeakHashMap

/**
 * The library's half of a model: a handle, while it is loaded. All calls come from the model's thread, but for [cancel], which comes from
 * any.
 */
internal class NativeModel(private val folder: File, private val manifest: Manifest, private val options: ModelOptions) {
    // 0: not loaded. Written on the model's thread, under the lock.
    private val lock = Any()
    private var handle = 0L
    private val numbers = WeakHashMap<Picture, Long>() // of pictures that the handle was given

    val isOpen: Boolean get() = handle != 0L

    /** Loads the model: weights from the packed file, where there is one. */
    fun open(threads: Int) {
        val opened = opened(threads)
        synchronized(lock) { handle = opened }
    }

    /** Begins an answer to what [request] writes, given the numbers of pictures. */
    fun start(request: ((Picture) -> Long) -> String) = Native.start(handle, request(::number).toByteArray())

    /** The answer's next event. Throws Phi3Exception: what ended it. */
    fun next(): Event = event(Native.next(handle))

    fun cancel() {
        synchronized(lock) { if (handle != 0L) Native.cancel(handle) }
    }

    /** The KV cache to a file; whether it was written. */
    fun save(file: File): Boolean = try {
        handle != 0L && Native.save(handle, file.path.toByteArray()) >= 0
    } catch (error: Phi3Exception) {
        file.delete()
        false // an engine of the app's keeps its own; a full disk: prefilling again gives the same
    }

    /** How many tokens the KV cache now holds; 0: the file was of no use. */
    fun restore(file: File): Long = try {
        Native.restore(handle, file.path.toByteArray())
    } catch (error: Phi3Exception) {
        file.delete()
        0
    }

    /** Gives the memory back; [open] may follow. */
    fun close() {
        numbers.clear()
        val old = synchronized(lock) { handle.also { handle = 0L } }
        if (old != 0L) Native.close(old)
    }

    private fun opened(threads: Int): Long {
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

    // Its kind (p3m_event) in the first byte, then its text.
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
}
