package org.phi3mobile.sample

import android.app.Activity
import kotlin.coroutines.CoroutineContext
import kotlinx.coroutines.CoroutineDispatcher

/** The main thread for coroutines, without the package kotlinx-coroutines-android. */
class MainThread(private val activity: Activity) : CoroutineDispatcher() {
    override fun dispatch(context: CoroutineContext, block: Runnable) = activity.runOnUiThread(block)
}
