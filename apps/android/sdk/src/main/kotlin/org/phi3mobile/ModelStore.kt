package org.phi3mobile

import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.runBlocking
import java.io.File
import java.io.FileInputStream
import java.io.InputStream

/** A bundle in the store. */
public class StoredModel internal constructor(
    /** Its folder's name. */
    public val id: String,
    public val folder: File,
    /** Null: it is damaged. */
    public val manifest: Manifest?,
    /** Why it can't be used; null: it can. Hashes are compared by [ModelStore.verify]. */
    public val damaged: String?,
)

/**
 * Bundles in a folder of the app's own, each whole or not there. What arrives is hashed as it is written; what is unfinished lies in
 * hidden folders and is gone on with by the same call, also after the process was killed. [folder] should be in noBackupFilesDir.
 * [free]: bytes that may be written, for tests.
 */
public class ModelStore @JvmOverloads constructor(
    public val folder: File,
    private val retry: Retry = Retry(),
    private val free: (File) -> Long = { it.usableSpace },
) {
    /** What is there, by name; reads manifests and sizes. */
    public fun list(): List<StoredModel> =
        folder.listFiles().orEmpty().filter { it.isDirectory && NAME.matches(it.name) }.sortedBy { it.name }.map { described(it) }

    /** Throws Phi3Exception: there is none of this name. */
    public fun get(id: String): StoredModel {
        val path = place(id)
        if (!path.isDirectory) throw Phi3Exception("no model $id is here: there are ${list().map { it.id }}")
        return described(path)
    }

    /** Downloads that did not end: name -> address. */
    public fun unfinished(): Map<String, String> = folder.listFiles().orEmpty().filter { it.name.startsWith(PARTIAL) }.mapNotNull { part ->
        runCatching { part.name.removePrefix(PARTIAL) to File(part, ADDRESS).readText() }.getOrNull()
    }.toMap()

    /**
     * Fetches a bundle from any HTTPS server that gives its files: [address] is the bundle's folder there. Goes on where an earlier
     * call ended, by ranges; a file that changed meanwhile is fetched again. Cancelling the collection ends it and keeps what came.
     * [headers]: such as Authorization; they go to the address's own host only. Throws Phi3Exception while collecting: what the
     * server lacks, what does not match the manifest, no room, no connection after [retry].
     */
    @JvmOverloads
    public fun download(address: String, id: String, headers: Map<String, String> = emptyMap()): Flow<Transfer> =
        transfer(id) { part, show -> Download(part, address, headers, retry, free, show).apply { check() } }

    /** Copies a bundle from a folder or what the system's picker gave (TreeSource), hashing it. */
    public fun copy(source: BundleSource, id: String): Flow<Transfer> = transfer(id) { work, show -> Copy(work, source, free, show) }

    /** The same of a folder. */
    public fun copy(source: File, id: String): Flow<Transfer> = copy(
        object : BundleSource {
            override fun open(path: String): InputStream = FileInputStream(File(source, path))
        },
        id,
    )

    /** Compares the hashes of all files: seconds per gigabyte. Throws Phi3Exception while collecting: which file is damaged. */
    public fun verify(id: String): Flow<Transfer> = transferring { show ->
        object : Work() {
            override fun run() {
                val model = get(id)
                val manifest = model.manifest
                if (manifest == null || model.damaged != null) throw Phi3Exception("$id is damaged: ${model.damaged}")
                var done = 0L
                for (part in manifest.parts) {
                    val hash = hashed(File(model.folder, part.path)) {
                        stopIfAsked()
                        done += it
                        show(Transfer.Progress(done, manifest.bytes, part.path))
                    }
                    if (hash != part.sha256) throw Phi3Exception("${part.path} of $id is damaged: delete the model and get it again")
                }
                show(Transfer.Done(model.folder))
            }
        }
    }

    /** Removes a model, or what an unfinished download left. Close it before. */
    public fun delete(id: String) {
        val doomed = File(folder, "$DOOMED$id")
        doomed.deleteRecursively()
        // First out of sight, so that half a model is never listed.
        val path = place(id)
        if (path.exists() && (!path.renameTo(doomed) || !doomed.deleteRecursively())) throw Phi3Exception("$path can't be removed")
        File(folder, "$PARTIAL$id").deleteRecursively()
    }

    /** Called on the thread that waits. */
    public fun interface Listener {
        /** How far it is; [Transfer.Done] comes last. */
        public fun onTransfer(transfer: Transfer)
    }

    /** For Java: collects a transfer, blocking; gives the model's folder. */
    @JvmOverloads
    public fun await(transfer: Flow<Transfer>, listener: Listener = Listener {}): File {
        var found: File? = null
        runBlocking {
            transfer.collect {
                listener.onTransfer(it)
                if (it is Transfer.Done) found = it.model
            }
        }
        return found!!
    }

    private fun place(id: String): File {
        if (!NAME.matches(id)) throw Phi3Exception("a model's name is '$id': up to 100 letters, digits, dots and dashes are allowed, no dot first")
        return File(folder, id)
    }

    private fun described(path: File): StoredModel = try {
        val manifest = Manifest.of(path)
        val lacking = manifest.parts.firstOrNull { File(path, it.path).length() != it.bytes }
        StoredModel(path.name, path, manifest, lacking?.let { "${it.path} is missing or has another size: get the model again" })
    } catch (error: Phi3Exception) {
        StoredModel(path.name, path, null, error.message)
    }

    // Brings files into a hidden folder, which becomes the model when all are there.
    private fun transfer(id: String, begin: (File, (Transfer) -> Unit) -> Work): Flow<Transfer> {
        val path = place(id)
        val part = File(folder, "$PARTIAL$id")
        return transferring { show ->
            val bringing = begin(part, show)
            object : Work() {
                override fun run() {
                    if (path.exists()) throw Phi3Exception("a model $id is here already: delete it first, or choose another name")
                    if (!part.isDirectory && !part.mkdirs()) throw Phi3Exception("$part can't be made: give the store a folder of the app's own")
                    locked(part) {
                        bringing.run()
                        if (!File(part, BUNDLE).renameTo(path)) throw Phi3Exception("$path can't be written")
                        part.deleteRecursively()
                    }
                    show(Transfer.Done(path))
                }

                override fun stop() = bringing.stop()
            }
        }
    }

    private companion object {
        val NAME = Regex("[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
        const val PARTIAL = ".part-"
        const val DOOMED = ".gone-"
    }
}

internal const val BUNDLE = "bundle" // in a partial folder: the files that are whole and right
internal const val ADDRESS = "address"
