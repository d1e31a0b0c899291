package org.phi3mobile

import java.io.File
import java.io.FileOutputStream

/**
 * What `phi3mobile bench BUNDLE --device adb --app PACKAGE` asks an app to do (bench/request.py, bench/steps.py): the activity hands
 * over the text of its intent's extra "bench" and the folder getExternalFilesDir(null). Nothing outside that folder's `bench` is
 * read or removed.
 */
public class Bench private constructor(private val asked: Map<*, *>, private val shared: File) {
    private val folder = File(shared, FOLDER)
    private val answer = File(folder, "run/${asked["out"]}")

    /** Does the request and writes its answer, JSON lines that the host reads while they grow. Blocks; never throws. */
    public fun run(cache: File) {
        FileOutputStream(answer).use { out ->
            val say = { line: Map<String, Any?> ->
                out.write((Json.write(line + ("t" to System.currentTimeMillis() / 1000.0)) + "\n").toByteArray())
                out.flush()
            }
            var step = "app"
            val code = try {
                say(mapOf("kind" to "app", "pid" to process()))
                Native.require()
                (asked["bundle"] as String).takeIf { it.isNotEmpty() }?.let { name -> measure(File(folder, "models/$name"), cache, say) { step = it } }
                if (asked["remove"] == true) remove()
                0
            } catch (error: Throwable) { // the host can't see this process: whatever it is must be said
                val name = if (error is Phi3Exception) "" else "${error.javaClass.simpleName}: "
                say(mapOf("kind" to "error", "step" to step, "reason" to (name + error.message?.replace(Regex("\\s+"), " ")).take(300)))
                1
            }
            say(mapOf("kind" to "exit", "code" to code))
        }
    }

    private fun measure(model: File, cache: File, say: (Map<String, Any?>) -> Unit, at: (String) -> Unit) {
        val manifest = Manifest.of(model)
        at("load")
        EngineChoice.of(manifest, model, 0)?.let { throw Phi3Exception("the library lacks operators of ${manifest.name}: export it with --recipe host") }
        val packed = File(cache, "bench.packed").apply { parentFile!!.mkdirs() }
        if (asked["cold"] == true) {
            packed.delete()
            manifest.parts.forEach { Native.forget(File(model, it.path).path.toByteArray()) }
        }
        val before = memory()["resident_bytes"]
        val start = System.nanoTime()
        val program = Native.programOpen(File(model, manifest.program).path.toByteArray(), packed.path.toByteArray(), (asked["threads"] as Long).toInt())
        try {
            val state = listOf("heap", "created", "reused", "none")[Native.programPacked(program)]
            say(mapOf("kind" to "load", "interpreter_bytes" to before, "seconds" to seconds(start), "packed" to state) + memory())
            val doing = Steps(program, manifest)
            for (step in asked["steps"] as List<*>) {
                at(step as String)
                doing.run(step, say)
            }
        } finally {
            Native.programClose(program)
        }
    }

    private fun remove() {
        File(folder, "models").listFiles().orEmpty().forEach { it.deleteRecursively() }
        File(folder, "run").listFiles().orEmpty().filter { it != answer }.forEach { it.deleteRecursively() }
    }

    /** The steps of bench/steps.py. */
    private class Steps(private val program: Long, manifest: Manifest) {
        private val vocab = manifest.vocab
        private val context = manifest.number("max_context")!!
        private val chunk = manifest.number("chunk")!!.toInt()
        private val original = manifest.number("original_context")
        private val back = manifest.number("back")
        private var filled = 0
        private var long = false
        private var farthest = 0L

        fun run(step: String, say: (Map<String, Any?>) -> Unit) {
            val given = step.split(':')
            val wanted = mapOf("prefill" to 3, "decode" to 4, "sustain" to 4, "text" to 3)[given[0]]
            if (wanted != given.size) throw Phi3Exception("step $step: give prefill, decode, sustain or text with their values")
            when (given[0]) {
                "prefill" -> prefill(given[1].toInt(), given[2].toInt(), say)
                "decode" -> decode(given[1].toInt(), given[2].toInt(), given[3].toInt(), say)
                "sustain" -> sustain(given[1].toDouble(), given[2].toInt(), given[3].toInt(), say)
                else -> text(given[1].toInt(), given[2].split(',').map { it.toLong() }.toLongArray(), say)
            }
        }

        private fun prefill(tokens: Int, rounds: Int, say: (Map<String, Any?>) -> Unit) {
            repeat(rounds) {
                filled = 0
                val start = System.nanoTime()
                fill(tokens, tokens)
                say(mapOf("kind" to "prefill", "tokens" to tokens, "seconds" to seconds(start)))
            }
            say(mapOf<String, Any?>("kind" to "memory", "tokens" to tokens) + memory())
        }

        private fun decode(depth: Int, count: Int, rounds: Int, say: (Map<String, Any?>) -> Unit) {
            repeat(rounds) { say(mapOf("kind" to "decode", "depth" to depth, "seconds" to tokens(depth, count))) }
            say(mapOf<String, Any?>("kind" to "memory", "tokens" to depth + count) + memory())
        }

        private fun sustain(most: Double, depth: Int, block: Int, say: (Map<String, Any?>) -> Unit) {
            val start = System.nanoTime()
            var total = 0
            while (seconds(start) < most) {
                val took = tokens(depth, block).sum()
                total += block
                say(mapOf("kind" to "sustain", "elapsed" to seconds(start), "tokens" to block, "seconds" to took, "total" to total))
            }
        }

        private fun text(count: Int, prompt: LongArray, say: (Map<String, Any?>) -> Unit) {
            filled = 0
            val end = prompt.size + count
            var next = forward(prompt, 0, end)
            val said = ArrayList<Long>()
            for (step in 0 until count) {
                said += next
                next = forward(longArrayOf(next), prompt.size + step, end)
            }
            say(mapOf("kind" to "text", "tokens" to said))
        }

        private fun tokens(depth: Int, count: Int): List<Double> {
            fill(depth, depth + count)
            var token = 0L
            return List(count) { step ->
                val start = System.nanoTime()
                token = forward(longArrayOf(token), depth + step, depth + count)
                seconds(start)
            }
        }

        private fun fill(tokens: Int, end: Int) {
            val becomes = isLong(end)
            var start = minOf(filled, tokens)
            if (becomes != long || (back != null && farthest - start > back)) start = 0
            // The same pseudo-random prompt in every runner.
            var state = 1L
            val prompt = LongArray(tokens) {
                state = state * 6364136223846793005L + 1442695040888963407L
                (state ushr 33) % vocab
            }
            if (start < tokens) forward(prompt.copyOfRange(start, tokens), start, end)
            filled = tokens
            long = becomes
        }

        private fun isLong(end: Int) = original != null && end > original

        private fun forward(tokens: LongArray, position: Int, end: Int): Long {
            if (end > context) throw Phi3Exception("$end positions do not fit the context of $context")
            var last = 0L
            for (at in tokens.indices step chunk) {
                val part = tokens.copyOfRange(at, minOf(at + chunk, tokens.size))
                val start = position + at
                last = Native.programForward(program, part, if (isLong(end)) start or LONG_REGIME else start.toLong())
                farthest = maxOf(if (start > 0) farthest else 0, start.toLong() + part.size)
            }
            return last
        }

        private infix fun Int.or(mark: Long): Long = toLong() or mark
    }

    public companion object {
        /** The intent's extra. */
        public const val EXTRA: String = "bench"
        private const val FOLDER = "bench"
        private const val LONG_REGIME = 1L shl 30
        private val NAME = Regex("[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
        private val STEP = Regex("[a-z]{1,20}(:[0-9.,]{1,60000}){0,4}")

        /**
         * What this start of the app was asked to measure; null: a person started it, or the request is done already (a phone gives an
         * activity its old intent again). Throws Phi3Exception: any app may start ours with any text.
         */
        @JvmStatic
        public fun requested(text: String?, shared: File): Bench? {
            if (text == null || !File(shared, "$FOLDER/run").isDirectory) return null
            val asked = (runCatching { Json.parse(text, "the benchmark's request") }.getOrNull() as? Map<*, *>)?.let { DEFAULTS + it }
            if (asked == null || !fits(asked)) throw Phi3Exception("the benchmark's request can't be read: use the phi3mobile that this app was built from")
            val bench = Bench(asked, shared)
            return if (bench.answer.exists()) null else bench
        }

        private val DEFAULTS =
            mapOf<Any?, Any?>("bundle" to "", "steps" to emptyList<Any?>(), "threads" to 0L, "cold" to false, "sample_s" to 0L, "remove" to false)

        private fun fits(asked: Map<*, *>): Boolean {
            val out = asked["out"] as? String ?: return false
            val bundle = asked["bundle"] as? String ?: return false
            val steps = asked["steps"] as? List<*> ?: return false
            return asked.keys == DEFAULTS.keys + "out" && NAME.matches(out) && (bundle.isEmpty() || NAME.matches(bundle)) &&
                steps.all { it is String && STEP.matches(it) } && asked["threads"] in 0L..256L && asked["sample_s"] is Number &&
                asked["cold"] is Boolean && asked["remove"] is Boolean
        }

        private operator fun LongRange.contains(value: Any?) = value is Long && value >= first && value <= last

        private fun seconds(start: Long) = (System.nanoTime() - start) / 1e9

        private fun process(): Int = File("/proc/self").canonicalFile.name.toIntOrNull() ?: 0

        /** As bench/memory.py counts. */
        private fun memory(): Map<String, Long> {
            val status = kilobytes(File("/proc/self/status"))
            val rollup = kilobytes(File("/proc/self/smaps_rollup"))
            return listOf(
                "peak_bytes" to status["VmHWM"], "resident_bytes" to status["VmRSS"], "anonymous_bytes" to status["RssAnon"],
                "pss_bytes" to rollup["Pss"], "dirty_bytes" to rollup["Private_Dirty"],
            ).mapNotNull { (name, value) -> value?.let { name to it } }.toMap()
        }

        private fun kilobytes(file: File): Map<String, Long> = runCatching { file.readLines() }.getOrDefault(emptyList())
            .filter { it.endsWith(" kB") }
            .associate { it.substringBefore(':') to it.substringAfter(':').trim().substringBefore(' ').toLong() * 1024 }
    }
}
