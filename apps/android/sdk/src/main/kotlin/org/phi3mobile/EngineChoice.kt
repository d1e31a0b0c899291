package org.phi3mobile

import java.io.File

/** Which runtime runs a bundle: what its program's operators ask for decides. */
internal object EngineChoice {
    /** Null: the library's own. Throws Phi3Exception: what is missing, and what to do. */
    fun of(manifest: Manifest, folder: File, threads: Int): Engine? {
        val lacking = manifest.operators.filterNot { Native.hasOperator(it.toByteArray()) }
        if (lacking.isEmpty()) return null
        val ours = lacking.filter { it.startsWith("phi3mobile::") }
        if (ours.isNotEmpty()) {
            val advice = "export it with --recipe android-cpu, or take the SDK's own library"
            throw Phi3Exception("${manifest.name} needs ${some(ours)}, which this library was built without: $advice")
        }
        if (!ExecuTorchEngine.isThere()) {
            val advice = "add org.pytorch:executorch-android:${manifest.runtimeVersion} to the app, or export it with --recipe host"
            throw Phi3Exception("${manifest.name} (recipe ${manifest.recipe}) needs ${some(lacking)}: $advice")
        }
        return ExecuTorchEngine(File(folder, manifest.program), threads, manifest.vocab)
    }

    private fun some(names: List<String>): String =
        names.take(3).joinToString(", ") + if (names.size > 3) " and ${names.size - 3} more operators" else ""
}
