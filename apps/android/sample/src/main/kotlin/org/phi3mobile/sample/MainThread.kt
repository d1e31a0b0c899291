package org.phi3mobile.sample

import android.app.Activity
import kotlinx.coroutines.CoroutineDispatcher
import kotlin.coroutines.CoroutineContext

/** The main thread for coroutines, without the package kotlinx-coroutines-android. */
class MainThread(private val activity: Activity) : CoroutineDispatcher() {
    override fun dispatch(context: CoroutineContext, block: Runnable) = activity.runOnUiThread(block)
}
