package org.phi3mobile

import java.io.File

/** How many cores are worth a thread: a small core that all others wait for makes a step slower, not faster. */
internal object Cores {
    private const val BIG = 0.5 // of the strongest core's capacity
    private const val FAST = 0.7 // of the fastest core's clock, where capacities are not told
    private const val MOST = 4 // memory is what limits decoding: more threads only heat

    /** 0: unknown; the library then takes all physical cores. [cpus]: for tests. */
    fun big(cpus: File = File("/sys/devices/system/cpu")): Int {
        val cores = cpus.listFiles { file -> Regex("cpu[0-9]+").matches(file.name) }.orEmpty()
        if (cores.isEmpty()) return 0
        return count(cores.map { number(File(it, "cpu_capacity")) }, BIG)
            ?: count(cores.map { number(File(it, "cpufreq/cpuinfo_max_freq")) }, FAST) ?: 0
    }

    private fun count(values: List<Long?>, share: Double): Int? {
        val known = values.filterNotNull()
        if (known.size < values.size) return null
        return minOf(MOST, known.count { it >= share * known.max() })
    }

    private fun number(file: File): Long? = runCatching { file.readText().trim().toLong() }.getOrNull()
}
