package org.phi3mobile

import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.channels.awaitClose
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.callbackFlow
import kotlinx.coroutines.flow.conflate
import kotlinx.coroutines.launch
import java.io.File
import java.io.IOException

/** How far a transfer is. */
public sealed class Transfer {
    /** Bytes of the whole bundle; [path]: the file that is on its way. */
    public data class Progress(val done: Long, val total: Long, val path: String) : Transfer()

    /** The connection failed: another try follows after so many milliseconds. */
    public data class Waiting(val milliseconds: Long, val reason: String) : Transfer()

    /** The bundle is in the store, whole and with the right hashes. */
    public data class Done(val model: File) : Transfer()
}

/** Something that takes a while and can be asked to stop. */
internal abstract class Work {
    @Volatile
    private var asked = false

    abstract fun run()

    open fun stop() {
        asked = true
    }

    fun stopIfAsked() {
        if (asked) throw Stopped()
    }
}

/** Asked to stop by the collector. */
internal class Stopped : RuntimeException()

/** Runs the work while it is collected, on a thread for files; cancelling the collection asks it to stop. */
internal fun transferring(begin: ((Transfer) -> Unit) -> Work): Flow<Transfer> = callbackFlow {
    val work = begin { trySend(it) }
    launch(Dispatchers.IO) {
        try {
            work.run()
            close()
        } catch (error: Stopped) {
            close()
        } catch (error: IOException) {
            close(Phi3Exception("the transfer failed: ${error.message}", error))
        } catch (error: Phi3Exception) {
            close(error)
        }
    }
    awaitClose { work.stop() }
}.conflate()
