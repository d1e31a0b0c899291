package org.phi3mobile.sample

import android.app.Activity
import android.content.Intent
import android.os.Bundle
import android.view.View
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Job
import kotlinx.coroutines.SupervisorJob
import kotlinx.coroutines.cancel
import kotlinx.coroutines.launch
import org.phi3mobile.Phi3Exception
import org.phi3mobile.Phi3Model
import org.phi3mobile.Session
import org.phi3mobile.Transfer
import org.phi3mobile.android.Device
import org.phi3mobile.android.Heat
import org.phi3mobile.android.TreeSource
import java.io.File

/** Models in a list, or a chat with one of them. All state is here; views are made anew. */
class MainActivity : Activity() {
    private val scope = CoroutineScope(SupervisorJob() + MainThread(this))
    private val store by lazy { Device.store(this) }
    private var model: Phi3Model? = null
    private var transfer: Job? = null

    override fun onCreate(saved: Bundle?) {
        super.onCreate(saved)
        if (Benchmark.begin(this)) return
        showModels()
    }

    override fun onDestroy() {
        scope.cancel()
        model?.close()
        super.onDestroy()
    }

    override fun onTrimMemory(level: Int) {
        super.onTrimMemory(level)
        model?.onTrimMemory(level)
    }

    @Deprecated("androidx has the newer way")
    override fun onBackPressed() {
        if (model == null) super.onBackPressed() else showModels()
    }

    @Deprecated("androidx has the newer way")
    override fun onActivityResult(request: Int, result: Int, data: Intent?) {
        val tree = data?.data ?: return
        if (request != PICK || result != RESULT_OK) return
        receive("imported-${System.currentTimeMillis() / 1000}") { id -> store.copy(TreeSource(this, tree), id) }
    }

    fun showModels(said: String = "") {
        model?.close()
        model = null
        setTitle(getString(R.string.models))
        setContentView(ModelsView(this, store.list(), store.unfinished(), Device.freeMemory(this), said).view)
    }

    fun pick() = startActivityForResult(Intent(Intent.ACTION_OPEN_DOCUMENT_TREE), PICK)

    fun delete(id: String) {
        said { store.delete(id) }
    }

    /** [id]: null takes the address's last name. */
    fun download(address: String, id: String? = null) {
        val name = id ?: address.trimEnd('/').substringAfterLast('/').replace(Regex("[^A-Za-z0-9._-]"), "-").take(100)
        receive(name) { store.download(address, it) }
    }

    fun cancelTransfer() = transfer?.cancel()

    private fun receive(id: String, begin: (String) -> kotlinx.coroutines.flow.Flow<Transfer>) {
        val shown = TransferView(this)
        setContentView(shown.view)
        transfer = scope.launch {
            var said = ""
            try {
                begin(id).collect { shown.show(it) }
            } catch (error: Phi3Exception) {
                said = error.message.orEmpty()
            } finally {
                showModels(said)
            }
        }
    }

    private fun said(work: () -> Unit) = showModels(
        try {
            work()
            ""
        } catch (error: Phi3Exception) {
            error.message.orEmpty()
        },
    )

    fun open(folder: File) {
        val views = Views(this)
        setContentView(views.inset(views.column(views.text(R.string.loading))))
        scope.launch {
            try {
                val opened = Phi3Model.open(folder, Device.options(this@MainActivity))
                model = opened
                Heat.follow(this@MainActivity, scope, opened)
                setTitle(opened.manifest.name)
                val session = opened.session("You are a helpful assistant.")
                setContentView(ChatView(this@MainActivity, scope, session).view)
            } catch (error: Phi3Exception) {
                showModels(error.message.orEmpty())
            }
        }
    }

    private companion object {
        const val PICK = 1
    }
}
