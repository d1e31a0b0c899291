package org.phi3mobile

import java.io.File
import java.io.FileOutputStream
import java.io.IOException
import java.io.InputStream
import java.security.MessageDigest

/** Where [ModelStore.copy] reads a bundle from. */
public interface BundleSource {
    /** A file of the bundle by its path with slashes. IOException: there is none. */
    public fun open(path: String): InputStream
}

/** A bundle from a [BundleSource] into a partial folder, hashed as it is written. Starts anew each time: local copies are quick. */
internal class Copy(
    private val folder: File,
    private val source: BundleSource,
    private val free: (File) -> Long,
    private val show: (Transfer) -> Unit,
) : Work() {
    override fun run() {
        val target = File(folder, BUNDLE)
        target.deleteRecursively()
        target.mkdirs()
        val text = try {
            source.open(Manifest.FILE).use { it.readBytes() }
        } catch (error: IOException) {
            throw Phi3Exception("there is no ${Manifest.FILE}: choose a folder that phi3mobile export made", error)
        }
        val manifest = Manifest.parse(String(text, Charsets.UTF_8))
        requireRoom(folder, manifest.bytes, free)
        var done = 0L
        for (part in manifest.parts) {
            val file = File(target, part.path)
            file.parentFile!!.mkdirs()
            val digest = MessageDigest.getInstance("SHA-256")
            source.open(part.path).use { from ->
                FileOutputStream(file).use { to ->
                    val piece = ByteArray(1 shl 18)
                    while (true) {
                        stopIfAsked()
                        val count = from.read(piece)
                        if (count < 0) break
                        to.write(piece, 0, count)
                        digest.update(piece, 0, count)
                        done += count
                        show(Transfer.Progress(done, manifest.bytes, part.path))
                    }
                    to.fd.sync()
                }
            }
            if (hex(digest) != part.sha256) throw Phi3Exception("${part.path} is damaged: it is not what the manifest says; copy the bundle again")
        }
        writeWhole(File(target, Manifest.FILE), text)
    }
}
