package org.phi3mobile

/** Whether a bundle fits the memory, from the manifest's numbers. */
public enum class Verdict { FITS, TIGHT, TOO_LARGE }

/** What a bundle needs against what is free, before anything is loaded. */
public object Memory {
    private const val TIGHT_SHARE = 0.8 // of the free memory

    /** [free]: bytes that the system can give, `Device.freeMemory` reads it. */
    @JvmStatic
    public fun verdict(manifest: Manifest, free: Long): Verdict = when {
        manifest.needs > free -> Verdict.TOO_LARGE
        manifest.needs > free * TIGHT_SHARE -> Verdict.TIGHT
        else -> Verdict.FITS
    }

    /** Sizes for people: on disk, in memory, free. */
    @JvmStatic
    public fun sentence(manifest: Manifest, free: Long): String {
        val mapped = if (manifest.weightsMapped) " and ${gigabytes(manifest.weights)} of its file" else ""
        return "${gigabytes(manifest.bytes)} on disk, ${gigabytes(manifest.needs)} of memory$mapped at ${manifest.context} tokens; ${gigabytes(free)} are free"
    }

    /**
     * Whether onTrimMemory's level asks for the model's memory: the app is in the background and the system collects (40 and more),
     * or it is shown and the system is about to kill others (15).
     */
    @JvmStatic
    public fun shouldUnload(level: Int): Boolean = level >= TRIM_MEMORY_BACKGROUND || level == TRIM_MEMORY_RUNNING_CRITICAL

    private const val TRIM_MEMORY_RUNNING_CRITICAL = 15 // ComponentCallbacks2
    private const val TRIM_MEMORY_BACKGROUND = 40

    internal fun gigabytes(bytes: Long): String = "%.2f GB".format(java.util.Locale.ROOT, bytes / 1e9)
}
