package org.phi3mobile.sample

import android.view.View
import android.widget.ScrollView
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Job
import kotlinx.coroutines.launch
import org.phi3mobile.Event
import org.phi3mobile.Phi3Exception
import org.phi3mobile.Session

/** A conversation: the answer streams into the last text; Send is Stop while it does. */
class ChatView(private val activity: MainActivity, private val scope: CoroutineScope, private val session: Session) {
    private val views = Views(activity)
    private val talk = views.column()
    private val scroll = ScrollView(activity).apply { addView(talk) }
    private val numbers = views.text("", 13f)
    private val message = views.field(R.string.message, 5, TYPE_LINES)
    private val send = views.button(R.string.send) { sendOrStop() }
    private var answering: Job? = null

    val view: View = views.inset(
        views.column(
            views.row(views.button(R.string.back) { activity.showModels() }, views.button(R.string.undo) { undo() }),
            scroll,
            numbers,
            views.row(message, send, grows = message),
            grows = scroll,
        ),
    )

    private fun sendOrStop() {
        if (answering != null) return session.cancel()
        val asked = message.text.toString().trim()
        if (asked.isEmpty()) return
        message.setText("")
        val answer = views.text("")
        talk.addView(views.column(views.heading(activity.getString(R.string.you)), views.text(asked), answer))
        send.setText(R.string.stop)
        val known = session.history.size
        answering = scope.launch {
            try {
                session.send(asked).collect { event ->
                    when (event) {
                        is Event.Text -> {
                            answer.append(event.text)
                            scroll.post { scroll.scrollTo(0, talk.height) } // fullScroll would take the focus from the message
                        }
                        is Event.Done -> tell(event)
                        is Event.Progress -> numbers.setText("${event.done} / ${event.total}")
                        is Event.LongRopeSwitch -> numbers.setText(event.message)
                        is Event.WindowSlid -> numbers.setText(event.message)
                        is Event.Note -> numbers.setText(event.message)
                        is Event.ToolCall, is Event.ToolResult -> Unit // this session has no functions
                    }
                }
                // Once, whole: piece by piece a screen reader would stumble.
                answer.announceForAccessibility(answer.text)
            } catch (error: Phi3Exception) {
                numbers.setText(error.message.orEmpty())
                numbers.announceForAccessibility(numbers.text)
            } finally {
                answering = null
                send.setText(R.string.send)
                // As in the session's history: what failed or said nothing is not there, the text can be sent again.
                if (session.history.size == known) {
                    talk.removeViewAt(talk.childCount - 1)
                    if (message.text.isEmpty()) message.setText(asked)
                }
            }
        }
    }

    private fun tell(event: Event.Done) {
        val done = event.statistics
        numbers.setText(activity.getString(R.string.statistics, done.decodeTokensPerS, done.ttftS, done.reusedTokens, done.promptTokens, done.finishReason))
    }

    private fun undo() {
        if (answering != null || session.undo().isEmpty()) return
        talk.removeViewAt(talk.childCount - 1)
    }

    private companion object {
        const val TYPE_LINES = 0x24001 // InputType: text, several lines, sentences begin large
    }
}
