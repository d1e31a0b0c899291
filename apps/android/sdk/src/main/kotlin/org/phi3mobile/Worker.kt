package org.phi3mobile

import kotlinx.coroutines.asCoroutineDispatcher
import kotlinx.coroutines.suspendCancellableCoroutine
import java.util.concurrent.LinkedBlockingQueue
import java.util.concurrent.RejectedExecutionException
import java.util.concurrent.ThreadPoolExecutor
import java.util.concurrent.TimeUnit

/** One thread for one native handle. */
internal class Worker(name: String) {
    // The thread ends when it has had nothing to do for a while, so a model that is never closed leaves none behind.
    private val executor = ThreadPoolExecutor(1, 1, 10, TimeUnit.SECONDS, LinkedBlockingQueue()) { task ->
        Thread(null, task, name, STACK).apply { isDaemon = true }
    }.apply { allowCoreThreadTimeOut(true) }

    val dispatcher = executor.asCoroutineDispatcher()

    /**
     * Runs [work] on the thread. If the caller is cancelled meanwhile, [stop] is called at once and the call returns; the work ends on
     * its thread, before whatever is run next.
     */
    suspend fun <T> run(stop: () -> Unit = {}, work: () -> T): T = suspendCancellableCoroutine { waiting ->
        waiting.invokeOnCancellation { stop() }
        try {
            executor.execute {
                if (waiting.isActive) waiting.resumeWith(runCatching(work))
            }
        } catch (error: RejectedExecutionException) {
            waiting.resumeWith(Result.failure(Phi3Exception("the model is closed: open it again")))
        }
    }

    /** Runs [last] after all that was begun, and nothing after it. */
    fun finish(last: () -> Unit) {
        executor.execute(last)
        executor.shutdown()
    }

    private companion object {
        const val STACK = 4L shl 20 // bytes: a forward runs here
    }
}
