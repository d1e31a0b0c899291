@file:Suppress("unused", "UNUSED_PARAMETER")

package doc

import org.phi3mobile.Engine
import org.phi3mobile.Manifest
import java.io.File
import java.nio.FloatBuffer

// What the snippets of docs/android.md take from the app around them: here it does nothing, they are compiled only.

fun show(vararg said: Any?) = Unit
fun append(text: String) = Unit
fun open(model: File) = Unit
fun notification(percent: Int) = percent
fun weatherJson(arguments: String) = arguments

class MyEngine(folder: File) : Engine {
    override fun forward(tokens: LongArray, position: Long, isLong: Boolean, logits: FloatBuffer) = Unit
}

// WorkManager, as far as the snippet takes it.

const val FOREGROUND_SERVICE_TYPE_DATA_SYNC = 1

class WorkerParameters

class Data {
    fun getString(name: String): String? = name
}

class ForegroundInfo(id: Int, notification: Any, type: Int)

class Result {
    companion object {
        fun success() = Result()
        fun failure(data: Data) = Result()
    }
}

fun workDataOf(vararg pairs: Pair<String, Any?>) = Data()

abstract class CoroutineWorker(val applicationContext: android.content.Context, parameters: WorkerParameters) {
    val inputData = Data()
    abstract suspend fun doWork(): Result
    suspend fun setForeground(info: ForegroundInfo) = Unit
    suspend fun setProgress(data: Data) = Unit
}
