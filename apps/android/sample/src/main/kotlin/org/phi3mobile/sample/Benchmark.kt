package org.phi3mobile.sample

import android.app.Activity
import org.phi3mobile.Bench
import org.phi3mobile.Phi3Exception
import java.io.File
import kotlin.concurrent.thread

/** The app as the runner of `phi3mobile bench BUNDLE --device adb --app org.phi3mobile.sample`. */
object Benchmark {
    /** Whether this start of the app is one. The host reads the answer and ends the process. */
    fun begin(activity: Activity): Boolean {
        val shared = activity.getExternalFilesDir(null) ?: return false
        val bench = try {
            Bench.requested(activity.intent.getStringExtra(Bench.EXTRA), shared)
        } catch (error: Phi3Exception) {
            tell(activity, error.message.orEmpty())
            return true
        } ?: return false
        activity.window.addFlags(KEEP_SCREEN_ON)
        tell(activity, activity.getString(R.string.bench))
        thread(name = "bench") { bench.run(File(activity.cacheDir, "phi3mobile")) }
        return true
    }

    private fun tell(activity: Activity, said: CharSequence) {
        val views = Views(activity)
        activity.setContentView(views.inset(views.column(views.text(said))))
    }

    private const val KEEP_SCREEN_ON = 128 // WindowManager.LayoutParams.FLAG_KEEP_SCREEN_ON
}
