package org.phi3mobile.android

import android.content.Context
import android.os.Build
import android.os.PowerManager
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.channels.awaitClose
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.callbackFlow
import kotlinx.coroutines.flow.conflate
import kotlinx.coroutines.flow.emptyFlow
import kotlinx.coroutines.launch
import org.phi3mobile.Phi3Model

/** Fewer threads while the phone is hot: what it computes slowly and steadily is more than what it computes between throttlings. */
public object Heat {
    /** PowerManager's thermal status (0 none, 2 moderate, 3 severe ...); nothing before Android 10. */
    @JvmStatic
    public fun status(context: Context): Flow<Int> {
        if (Build.VERSION.SDK_INT < ANDROID_10) return emptyFlow()
        val power = context.getSystemService(Context.POWER_SERVICE) as PowerManager
        return callbackFlow {
            val listener = PowerManager.OnThermalStatusChangedListener { trySend(it) }
            power.addThermalStatusListener(listener)
            awaitClose { power.removeThermalStatusListener(listener) }
        }.conflate()
    }

    /** Half the model's threads from "severe" on, all of them again below "moderate", as long as [scope] lives. */
    public fun follow(context: Context, scope: CoroutineScope, model: Phi3Model) {
        val cool = model.threads
        scope.launch {
            status(context).collect { status ->
                if (status >= SEVERE) model.useThreads(maxOf(1, cool / 2))
                if (status < MODERATE) model.useThreads(maxOf(1, cool))
            }
        }
    }

    private const val ANDROID_10 = 29
    private const val MODERATE = 2
    private const val SEVERE = 3
}
