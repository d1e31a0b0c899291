package org.phi3mobile.android

import android.app.ActivityManager
import android.content.Context
import org.phi3mobile.ModelOptions
import org.phi3mobile.ModelStore
import java.io.File

/** What Android says of the device and of the app's folders. */
public object Device {
    /** Bytes that the system can give before it kills others. */
    @JvmStatic
    public fun freeMemory(context: Context): Long {
        val manager = context.getSystemService(Context.ACTIVITY_SERVICE) as ActivityManager
        val info = ActivityManager.MemoryInfo().also { manager.getMemoryInfo(it) }
        return maxOf(0, info.availMem - info.threshold)
    }

    /** Packed weights and KV caches in the app's cache folder, memory checked before a model is opened. */
    @JvmStatic
    @JvmOverloads
    public fun options(context: Context, threads: Int = 0): ModelOptions =
        ModelOptions(threads, cache = File(context.cacheDir, "phi3mobile"), freeMemory = freeMemory(context))

    /** The app's models: in noBackupFilesDir, which no backup copies into the cloud. */
    @JvmStatic
    public fun store(context: Context): ModelStore = ModelStore(File(context.noBackupFilesDir, "models"))
}
