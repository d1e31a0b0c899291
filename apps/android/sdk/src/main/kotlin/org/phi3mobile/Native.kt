package org.phi3mobile

import java.nio.ByteBuffer
import java.nio.ByteOrder

/**
 * phi3mobile_jni.cpp: the C API of phi3mobile/core. Texts cross as UTF-8 bytes, never as JNI's modified UTF-8. Calls that fail throw
 * Phi3Exception. A handle is used by one thread at a time, but for [cancel].
 */
internal object Native {
    const val API_VERSION = 1

    /** Why the library is not there; null: it is. */
    val missing: String?

    init {
        missing = try {
            System.loadLibrary("phi3mobile_jni")
            val found = apiVersion()
            if (found == API_VERSION) null else "libphi3mobile has version $found of its API, this SDK is made for $API_VERSION: take both from one release"
        } catch (error: UnsatisfiedLinkError) {
            "libphi3mobile_jni is not in this app for this device's processor: ${error.message?.lineSequence()?.firstOrNull()}"
        }
    }

    fun require() {
        missing?.let { throw Phi3Exception(it) }
    }

    @JvmStatic external fun apiVersion(): Int
    @JvmStatic external fun runtimeVersion(): ByteArray
    @JvmStatic external fun hasOperator(name: ByteArray): Boolean

    /** The manifest as JSON. */
    @JvmStatic external fun manifest(folder: ByteArray): ByteArray

    @JvmStatic external fun open(folder: ByteArray, options: ByteArray): Long
    @JvmStatic external fun openWith(folder: ByteArray, engine: Engine, vocab: Long): Long

    /** The number that stands for a picture in a request's messages. */
    @JvmStatic external fun picture(handle: Long, pixels: ByteArray, width: Int, height: Int, channels: Int, orientation: Int): Long
    @JvmStatic external fun start(handle: Long, request: ByteArray)

    /** The event's kind (p3m_event) in the first byte, then its text. */
    @JvmStatic external fun next(handle: Long): ByteArray
    @JvmStatic external fun cancel(handle: Long)
    @JvmStatic external fun reset(handle: Long)
    @JvmStatic external fun save(handle: Long, path: ByteArray): Long
    @JvmStatic external fun restore(handle: Long, path: ByteArray): Long
    @JvmStatic external fun close(handle: Long)

    // Programs without text, for Bench.

    @JvmStatic external fun programOpen(pte: ByteArray, packed: ByteArray, threads: Int): Long

    /** Where packed weights are: p3m_packed. */
    @JvmStatic external fun programPacked(handle: Long): Int

    /** Id of the greatest logit after the last token. */
    @JvmStatic external fun programForward(handle: Long, tokens: LongArray, position: Long): Long
    @JvmStatic external fun programClose(handle: Long)

    /** Asks the system to drop a file from its cache. */
    @JvmStatic external fun forget(path: ByteArray)

    // Called by the JNI code.

    @JvmStatic
    fun failed(line: ByteArray): Phi3Exception = Phi3Exception(String(line, Charsets.UTF_8))

    /** Null: done; else the line that the answer ends with. */
    @JvmStatic
    fun forward(engine: Engine, tokens: LongArray, position: Long, isLong: Boolean, logits: ByteBuffer): ByteArray? = try {
        engine.forward(tokens, position, isLong, logits.order(ByteOrder.nativeOrder()).asFloatBuffer())
        null
    } catch (error: Throwable) {
        line(error).toByteArray()
    }

    @JvmStatic
    fun reset(engine: Engine) {
        runCatching { engine.reset() }
    }

    @JvmStatic
    fun close(engine: Engine) {
        runCatching { engine.close() }
    }

    private fun line(error: Throwable): String {
        val said = error.message?.split(Regex("\\s+"))?.joinToString(" ")
        return if (error is Phi3Exception && said != null) said else "${error.javaClass.simpleName}: ${said ?: "no message"}"
    }
}
