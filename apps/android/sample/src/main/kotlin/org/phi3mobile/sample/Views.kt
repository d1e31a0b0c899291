package org.phi3mobile.sample

import android.app.Activity
import android.os.Build
import android.view.View
import android.view.ViewGroup.LayoutParams.MATCH_PARENT
import android.view.ViewGroup.LayoutParams.WRAP_CONTENT
import android.widget.Button
import android.widget.EditText
import android.widget.LinearLayout
import android.widget.ProgressBar
import android.widget.ScrollView
import android.widget.TextView
import org.phi3mobile.Memory
import org.phi3mobile.StoredModel
import org.phi3mobile.Transfer
import org.phi3mobile.Verdict

/** Plain views with the theme's colours and sizes that fingers hit. */
class Views(private val activity: Activity) {
    private fun pixels(dp: Int) = (dp * activity.resources.displayMetrics.density).toInt()

    fun text(id: Int) = text(activity.getString(id))

    fun text(said: CharSequence, size: Float = 16f) = TextView(activity).apply {
        setText(said)
        setTextSize(size)
        setTextIsSelectable(true)
        setPadding(0, pixels(4), 0, pixels(4))
    }

    fun heading(said: CharSequence) = text(said, 20f).apply { if (Build.VERSION.SDK_INT >= 28) setAccessibilityHeading(true) }

    fun button(id: Int, description: CharSequence? = null, clicked: () -> Unit) = Button(activity).apply {
        setText(id)
        setMinimumHeight(pixels(48))
        description?.let { setContentDescription(it) }
        setOnClickListener { clicked() }
    }

    fun field(hint: Int, lines: Int, type: Int) = EditText(activity).apply {
        setHint(hint)
        setInputType(type)
        setMaxLines(lines)
        setMinimumHeight(pixels(48))
    }

    fun row(vararg views: View, grows: View? = null) = LinearLayout(activity).apply {
        for (view in views) {
            addView(view, LinearLayout.LayoutParams(if (view === grows) 0 else WRAP_CONTENT, WRAP_CONTENT, if (view === grows) 1f else 0f))
        }
    }

    fun column(vararg views: View, grows: View? = null) = LinearLayout(activity).apply {
        setOrientation(LinearLayout.VERTICAL)
        for (view in views) {
            addView(view, LinearLayout.LayoutParams(MATCH_PARENT, if (view === grows) 0 else WRAP_CONTENT, if (view === grows) 1f else 0f))
        }
    }

    /** Away from status bar, navigation and keyboard, which lie over the window since Android 15. */
    fun inset(view: View) = view.apply {
        setOnApplyWindowInsetsListener { _, insets ->
            @Suppress("DEPRECATION")
            setPadding(pixels(16), pixels(8) + insets.systemWindowInsetTop, pixels(16), pixels(8) + insets.systemWindowInsetBottom)
            insets
        }
    }
}

/** The list: each model with what its memory needs mean here. */
class ModelsView(activity: MainActivity, models: List<StoredModel>, unfinished: Map<String, String>, free: Long, said: String) {
    private val views = Views(activity)
    val view: View

    init {
        val list = views.column()
        if (said.isNotEmpty()) list.addView(views.text(said).apply { setAccessibilityLiveRegion(View.ACCESSIBILITY_LIVE_REGION_POLITE) })
        if (models.isEmpty()) list.addView(views.text(R.string.none))
        for (stored in models) {
            val manifest = stored.manifest
            val about = stored.damaged ?: manifest!!.let { "${activity.getString(word(Memory.verdict(it, free)))}: ${Memory.sentence(it, free)}" }
            val name = manifest?.name ?: stored.id
            list.addView(views.heading(name))
            list.addView(views.text(about))
            val delete = views.button(R.string.delete, activity.getString(R.string.delete_model, name)) { activity.delete(stored.id) }
            val open = views.button(R.string.open, activity.getString(R.string.open_model, name)) { activity.open(stored.folder) }
            open.setEnabled(stored.damaged == null && manifest != null && Memory.verdict(manifest, free) != Verdict.TOO_LARGE)
            list.addView(views.row(open, delete))
        }
        for ((id, address) in unfinished) {
            list.addView(views.heading(id))
            list.addView(views.text(address))
            val goOn = views.button(R.string.go_on, activity.getString(R.string.go_on_model, id)) { activity.download(address, id) }
            val delete = views.button(R.string.delete, activity.getString(R.string.delete_model, id)) { activity.delete(id) }
            list.addView(views.row(goOn, delete))
        }
        val address = views.field(R.string.address, 1, TYPE_URI)
        list.addView(views.button(R.string.import_folder) { activity.pick() })
        list.addView(views.row(address, views.button(R.string.download) { activity.download(address.text.toString()) }, grows = address))
        view = views.inset(ScrollView(activity).apply { addView(list) })
    }

    private fun word(verdict: Verdict) = when (verdict) {
        Verdict.FITS -> R.string.fits
        Verdict.TIGHT -> R.string.tight
        Verdict.TOO_LARGE -> R.string.too_large
    }

    private companion object {
        const val TYPE_URI = 0x11 // InputType: text, URI
    }
}

/** A transfer that runs. */
class TransferView(private val activity: MainActivity) {
    private val views = Views(activity)
    private val line = views.text("")
    private val bar = ProgressBar(activity, null, android.R.attr.progressBarStyleHorizontal).apply { setMax(1000) }
    val view: View = views.inset(views.column(line, bar, views.button(R.string.cancel) { activity.cancelTransfer() }))

    fun show(transfer: Transfer) = when (transfer) {
        is Transfer.Progress -> {
            val share = if (transfer.total > 0) transfer.done.toDouble() / transfer.total else 1.0
            bar.setProgress((share * 1000).toInt())
            line.setText(activity.getString(R.string.progress, transfer.path, (share * 100).toInt()))
        }
        is Transfer.Waiting -> line.setText(activity.getString(R.string.waiting, transfer.reason))
        is Transfer.Done -> Unit
    }
}
