package org.phi3mobile

import java.io.File
import java.io.IOException

/** What an app wants to know of a bundle before it opens it; [json] is all of manifest.json. */
public class Manifest internal constructor(public val json: String, private val all: Map<*, *>) {
    /** A file of the bundle: its path inside the folder with slashes, bytes, and SHA-256 in lower case. */
    public data class Part(val path: String, val bytes: Long, val sha256: String)

    public val name: String get() = text(all["name"])
    public val recipe: String get() = text(section("recipe")["name"])

    /** Tokens that prompt and answer have together. */
    public val context: Long get() = whole(section("model")["context"])
    public val vocab: Long get() = whole(section("model")["vocab"])
    public val license: String? get() = all["license"] as? String

    /** Operators that the runtime must have, as "aten::add.out". */
    public val operators: List<String> get() = (section("runtime")["operators"] as? List<*>).orEmpty().map { text(it) }

    /** Version of ExecuTorch that the program was made for. */
    public val runtimeVersion: String get() = text(section("runtime")["version"])
    public val program: String get() = text(section("runtime")["program"])

    /** Every file but manifest.json. */
    public val parts: List<Part> = parts(all["files"])

    /** Bytes on disk. */
    public val bytes: Long get() = parts.sumOf { it.bytes } + json.toByteArray().size

    /** The weights are pages of a file, which the system may drop and read again; else they are copied when the model is opened. */
    public val weightsMapped: Boolean get() = all["weights_mapped"] == true

    /** Bytes of the weights. */
    public val weights: Long get() = whole(section("memory")["weights"])

    /** Bytes of memory that must be free: the KV cache of the whole context, activations, weights where they are copied. */
    public val needs: Long get() {
        val memory = section("memory")
        return whole(memory["kv_per_token"]) * context + whole(memory["activations"]) + if (weightsMapped) 0 else weights
    }

    /** A number of the section `model`; null where it is null or not there. */
    internal fun number(name: String): Long? = (section("model")[name] as? Number)?.toLong()

    private fun section(name: String): Map<*, *> = all[name] as? Map<*, *> ?: damaged(name)

    public companion object {
        /** Its name in a bundle's folder. */
        public const val FILE: String = "manifest.json"

        /** Reads a folder's. Throws Phi3Exception: it is no bundle, or its manifest is damaged. */
        @JvmStatic
        public fun of(folder: File): Manifest {
            val text = try {
                File(folder, FILE).readText()
            } catch (error: IOException) {
                throw Phi3Exception("$folder has no $FILE that can be read: give a folder that phi3mobile export made", error)
            }
            val found = parse(text)
            if (found.all["format"] == 2L) return found
            // The library knows other formats, or says why not.
            Native.require()
            return parse(String(Native.manifest(folder.path.toByteArray()), Charsets.UTF_8))
        }

        internal fun parse(text: String): Manifest =
            Manifest(text, Json.parse(text, "the manifest") as? Map<*, *> ?: throw Phi3Exception("the manifest is no JSON object"))

        private fun damaged(what: String): Nothing =
            throw Phi3Exception("the manifest says nothing of use about its $what: copy or export the bundle again")

        private fun text(value: Any?): String = value as? String ?: ""
        private fun whole(value: Any?): Long = (value as? Number)?.toLong() ?: 0

        private fun parts(files: Any?): List<Part> = (files as? Map<*, *> ?: damaged("files")).map { (path, about) ->
            val bytes = (about as? Map<*, *>)?.get("bytes") as? Long ?: damaged("files")
            val hash = about["sha256"] as? String ?: damaged("files")
            if (!inside(path as String) || path == FILE || bytes < 0 || !HASH.matches(hash)) damaged("files")
            Part(path, bytes, hash)
        }

        // A name that stays in its folder, on every file system.
        private fun inside(path: String): Boolean =
            '\\' !in path && '\u0000' !in path && path.split('/').all { it.isNotEmpty() && it != "." && it != ".." }

        private val HASH = Regex("[0-9a-f]{64}")
    }
}
