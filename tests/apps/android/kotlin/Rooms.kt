package tests

import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.async
import kotlinx.coroutines.coroutineScope
import kotlinx.coroutines.flow.collect
import kotlinx.coroutines.flow.first
import kotlinx.coroutines.launch
import org.phi3mobile.Cores
import org.phi3mobile.Json
import org.phi3mobile.Manifest
import org.phi3mobile.Memory
import org.phi3mobile.ModelStore
import org.phi3mobile.Phi3Exception
import org.phi3mobile.Retry
import org.phi3mobile.Transfer
import org.phi3mobile.Verdict
import java.io.File

/** ARGUMENT: address, name, attempts, bytes that are free, headers as name=value. Prints what was shown, and how it ended. */
val downloads: Map<String, Check> = mapOf(
    "download" to { given ->
        val (address, id, attempts, free) = given.arguments
        val headers = given.arguments.drop(4).associate { it.substringBefore('=') to it.substringAfter('=') }
        val store = ModelStore(File(given.scratch, "models"), Retry(attempts.toInt(), 20, 100, 3000), { free.toLong() })
        try {
            store.download(address, id, headers).collect { event ->
                when (event) {
                    is Transfer.Progress -> holds(event.done in 0..event.total, "$event")
                    is Transfer.Waiting -> println("waiting ${event.reason}")
                    is Transfer.Done -> println("done ${event.model.name} ${store.get(id).damaged} ${store.unfinished()}")
                }
            }
        } catch (error: Phi3Exception) {
            holds('\n' !in error.message!!, error.message!!)
            println("refused ${error.message}")
        }
        println("unfinished ${store.unfinished().keys} here ${store.list().map { it.id }}")
    },

    // Stops when the first bytes of the program are there; then nothing may grow.
    "stopped" to { given ->
        val store = ModelStore(File(given.scratch, "models"), Retry(3, 20, 100, 3000))
        coroutineScope {
            val job = launch {
                store.download(given.arguments[0], "m").first { it is Transfer.Progress && it.done > it.total / 2 }
            }
            job.join()
        }
        val size = { File(given.scratch, "models").walkTopDown().filter { it.isFile }.sumOf { it.length() } }
        val then = size()
        Thread.sleep(300)
        same(size(), then, "bytes after the end")
        same(store.unfinished(), mapOf("m" to given.arguments[0]))
        same(store.list().size, 0)
        // Another one of the same name at once is refused, one after it goes on.
        coroutineScope {
            val both = List(2) { async(Dispatchers.Default) { runCatching { store.download(given.arguments[0], "m").collect {} } } }
            val lines = both.mapNotNull { it.await().exceptionOrNull()?.message }
            println("one of two: $lines")
            same(lines.size, 1)
        }
        same(store.list().single().damaged, null)
    },

    "copy" to { given ->
        val store = ModelStore(File(given.scratch, "models"))
        store.copy(given.bundle, "a").collect {}
        same(store.list().map { it.id to it.damaged }, listOf<Pair<String, String?>>("a" to null))
        refused("here already") { store.copy(given.bundle, "a").collect {} }
        refused("letters, digits") { store.copy(given.bundle, "../a") }
        refused("letters, digits") { store.get(".hidden") }
        refused("no model b") { store.get("b") }
        store.verify("a").collect {}
        val model = store.get("a")
        val program = File(model.folder, model.manifest!!.program)
        program.writeBytes(program.readBytes().also { it[100] = (it[100] + 1).toByte() })
        same(store.get("a").damaged, null)
        refused("damaged", model.manifest!!.program) { store.verify("a").collect {} }
        program.appendBytes(byteArrayOf(1))
        holds("size" in store.get("a").damaged!!, "a longer file is fine")
        File(model.folder, "manifest.json").writeText("{\"format\": 2, \"files\": {\"../x\": {\"bytes\": 1, \"sha256\": \"${"0".repeat(64)}\"}}}")
        holds(store.get("a").manifest == null, "a manifest that leaves its folder")
        store.delete("a")
        same(store.list().size, 0)
        refused("no room", "free") { ModelStore(File(given.scratch, "full"), free = { 1000 }).copy(given.bundle, "a").collect {} }
        refused("export") { store.copy(given.scratch, "c").collect {} }
        same(File(given.scratch, "models").listFiles()!!.filter { it.name.startsWith(".gone") }.size, 0)
    },
)

val rooms: Map<String, Check> = mapOf(
    "json" to { _ ->
        val text = """{"a": [1, -2.5e3, true, null, "x\n\"\u00e9\ud83d\ude00"], "b": {"c": 9007199254740993}}"""
        val value = Json.parse(text, "it")
        same(Json.parse(Json.write(value), "it"), value)
        same(((value as Map<*, *>)["b"] as Map<*, *>)["c"], 9007199254740993L)
        same((value["a"] as List<*>)[4], "x\n\"é😀")
        for (bad in listOf("", "{", "[1,]", "{\"a\" 1}", "01", "1 2", "\"\\x\"", "\"\\u12\"", "\"a", "nul", "{1: 2}", "[".repeat(100000), "\"\n\"", "NaN")) {
            refused("it is no JSON") { Json.parse(bad, "it") }
        }
    },

    "memory" to { given ->
        val manifest = Manifest.of(given.bundle)
        same(Memory.verdict(manifest, manifest.needs * 2), Verdict.FITS)
        same(Memory.verdict(manifest, manifest.needs), Verdict.TIGHT)
        same(Memory.verdict(manifest, manifest.needs - 1), Verdict.TOO_LARGE)
        println("needs ${manifest.needs} ${manifest.name} ${manifest.context}")
        println(Memory.sentence(manifest, 3_000_000_000))
        same(listOf(5, 10, 15, 20, 40, 60, 80).filter { Memory.shouldUnload(it) }, listOf(15, 40, 60, 80))
    },

    "cores" to { given ->
        fun phone(name: String, file: String, values: List<Int?>): File {
            val cpus = File(given.scratch, name)
            values.forEachIndexed { index, value ->
                val at = File(cpus, "cpu$index/$file")
                at.parentFile!!.mkdirs()
                if (value != null) at.writeText("$value\n")
            }
            File(cpus, "cpufreq").mkdirs()
            return cpus
        }
        val clocks = "cpufreq/cpuinfo_max_freq"
        same(Cores.big(phone("1+3+4", "cpu_capacity", listOf(250, 250, 250, 250, 780, 780, 780, 1024))), 4)
        same(Cores.big(phone("2+6", "cpu_capacity", List(6) { 320 } + List(2) { 1024 })), 2)
        same(Cores.big(phone("8 big", "cpu_capacity", List(6) { 800 } + List(2) { 1024 })), 4)
        same(Cores.big(phone("clocks", clocks, List(4) { 1800000 } + List(3) { 2420000 } + listOf(2840000))), 4)
        same(Cores.big(phone("alike", clocks, List(2) { 2000000 })), 2)
        same(Cores.big(phone("untold", clocks, listOf(2000000, null))), 0)
        same(Cores.big(File(given.scratch, "nothing")), 0)
    },
)

/** ARGUMENTS: the request, and whether it should be refused or is done already. */
val benches: Map<String, Check> = mapOf(
    "bench" to { given ->
        val found = try {
            org.phi3mobile.Bench.requested(given.arguments[0], given.scratch)
        } catch (error: Phi3Exception) {
            println("refused ${error.message}")
            null
        }
        println(if (found == null) "nothing" else "running")
        found?.run(File(given.scratch, "cache"))
    },
)
