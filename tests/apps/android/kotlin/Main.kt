package tests

import kotlinx.coroutines.runBlocking
import org.phi3mobile.Event
import org.phi3mobile.Phi3Exception
import org.phi3mobile.Session
import java.io.File

/** java tests.MainKt NAME BUNDLE SCRATCH ARGUMENT...: one check in a fresh process; prints JSON, or the assertion that failed. */
fun main(arguments: Array<String>) {
    val (name, bundle, scratch) = arguments
    val check = checks[name] ?: error("no check $name; there are ${checks.keys}")
    val given = Given(File(bundle), File(scratch).apply { mkdirs() }, arguments.drop(3))
    runBlocking { check(given) }
    println("ok")
    System.out.flush()
    Runtime.getRuntime().halt(0) // whatever threads a failed check left
}

class Given(val bundle: File, val scratch: File, val arguments: List<String>)

typealias Check = suspend (Given) -> Unit

val checks: Map<String, Check> = answers + lives + downloads + rooms + benches + tools + pictures + vectors

fun same(found: Any?, wanted: Any?, what: String = "") {
    if (found != wanted) throw AssertionError("$what: found $found, wanted $wanted")
}

fun holds(condition: Boolean, what: String) {
    if (!condition) throw AssertionError(what)
}

/** The line of a refusal; it must contain all of `parts` and be one line. */
suspend fun refused(vararg parts: String, work: suspend () -> Any?): String {
    try {
        work()
    } catch (error: Phi3Exception) {
        val line = error.message!!
        holds('\n' !in line, "several lines: $line")
        for (part in parts) holds(part in line, "no '$part' in: $line")
        return line
    }
    throw AssertionError("nothing was refused; wanted ${parts.toList()}")
}

class Collected(val text: String, val events: List<Event>) {
    val done get() = (events.last() as Event.Done).statistics
}

suspend fun Session.answered(message: String, generation: org.phi3mobile.Generation? = null): Collected {
    val events = ArrayList<Event>()
    (if (generation == null) send(message) else send(message, generation)).collect { events += it }
    return Collected(events.filterIsInstance<Event.Text>().joinToString("") { it.text }, events)
}
