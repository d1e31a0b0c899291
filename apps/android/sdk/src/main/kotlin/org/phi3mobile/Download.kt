package org.phi3mobile

import java.io.File
import java.io.FileOutputStream
import java.io.IOException
import java.io.InputStream
import java.util.concurrent.CountDownLatch
import java.util.concurrent.TimeUnit

/** How a download goes on after failures: [attempts] in a row that brought nothing end it. */
public class Retry @JvmOverloads constructor(
    public val attempts: Int = 6,
    public val firstMs: Long = 1_000,
    public val mostMs: Long = 60_000,
    public val timeoutMs: Int = 30_000,
)

/**
 * A bundle from a server into a partial folder. A file on its way is named by the hash that it must have, so whatever lies there can
 * be gone on with; `.from` beside it keeps the server's mark of the version (ETag) for If-Range. Whole files with the right hash
 * move to the folder `bundle`.
 */
internal class Download(
    private val folder: File,
    private val address: String,
    headers: Map<String, String>,
    private val retry: Retry,
    private val free: (File) -> Long,
    private val show: (Transfer) -> Unit,
) : Work() {
    private val wake = CountDownLatch(1)

    private val http = Http(address, headers, retry)
    private var done = 0L
    private var total = 0L

    /** The range was of no use: once more from the start. */
    private class Anew(message: String) : IOException(message)

    /** Throws Phi3Exception: the address is none that is fetched from. */
    fun check() = http.check()

    override fun stop() {
        super.stop()
        wake.countDown()
        http.stop()
    }

    override fun run() {
        writeWhole(File(folder, ADDRESS), address.toByteArray())
        val text = patiently { manifestText() }
        val manifest = Manifest.parse(String(text, Charsets.UTF_8))
        val target = File(folder, BUNDLE).apply { mkdirs() }
        forgetOthers(manifest, target)
        total = manifest.bytes
        val here = manifest.parts.filter { File(target, it.path).length() == it.bytes && File(target, it.path).isFile }
        done = here.sumOf { it.bytes } + text.size
        val missing = manifest.parts - here.toSet()
        requireRoom(folder, missing.sumOf { it.bytes - minOf(it.bytes, partial(it).length()) }, free)
        for (part in missing) fetch(part, File(target, part.path))
        writeWhole(File(target, Manifest.FILE), text)
    }

    private fun manifestText(): ByteArray = http.open(Manifest.FILE, 0, null).let { from ->
        if (from.responseCode != 200) throw http.failure(from, Manifest.FILE)
        from.inputStream.use { stream ->
            val text = stream.readBytes()
            if (from.contentLengthLong >= 0 && text.size.toLong() != from.contentLengthLong) throw Passing("the connection ended early")
            text
        }
    }

    // What an older manifest asked for and this one doesn't.
    private fun forgetOthers(manifest: Manifest, target: File) {
        val hashes = manifest.parts.map { it.sha256 }.toSet()
        folder.listFiles().orEmpty().filter { it.name.length >= 64 && it.name.take(64) !in hashes }.forEach { it.delete() }
        val known = manifest.parts.associateBy { it.path }
        val was = File(folder, "hashes")
        val before = runCatching { was.readLines().associate { it.substringAfter(' ') to it.substringBefore(' ') } }.getOrDefault(emptyMap())
        target.walkBottomUp().filter { it.isFile }.forEach { file ->
            val path = file.relativeTo(target).invariantSeparatorsPath
            if (known[path]?.sha256 == null || before[path] != known[path]!!.sha256) file.delete()
        }
        writeWhole(was, manifest.parts.joinToString("\n") { "${it.sha256} ${it.path}" }.toByteArray())
    }

    private fun partial(part: Manifest.Part) = File(folder, part.sha256)

    private fun fetch(part: Manifest.Part, target: File) {
        val file = partial(part)
        val mark = File(file.path + ".from")
        val before = done
        var wrong = 0
        while (true) {
            patiently {
                done = before + file.length()
                try {
                    if (file.length() < part.bytes || part.bytes == 0L) stream(part, file, mark)
                } catch (error: Anew) {
                    file.delete()
                    mark.delete()
                    done = before
                    stream(part, file, mark)
                }
            }
            val hash = if (file.length() == part.bytes) hashed(file) { stopIfAsked() } else ""
            if (hash == part.sha256) break
            file.delete()
            mark.delete()
            // A range of another version explains it once.
            if (++wrong == 2) {
                val why = "the server's bundle is damaged, or something on the way changes it"
                throw Phi3Exception("${part.path} is not what the manifest says, twice: $why")
            }
        }
        target.parentFile!!.mkdirs()
        if (!file.renameTo(target)) throw Phi3Exception("$target can't be written")
        mark.delete()
        done = before + part.bytes
    }

    private fun stream(part: Manifest.Part, file: File, mark: File) {
        val have = file.length()
        val from = http.open(part.path, have, if (have > 0) mark.takeIf { it.isFile }?.readText() else null)
        val append = when (from.responseCode) {
            200 -> false
            206 -> {
                if (have == 0L) throw Phi3Exception("the server sends a part of ${part.path} that nobody asked for: it can't be used")
                val range = Regex("bytes (\\d+)-(\\d+)/(\\d+|\\*)").matchEntire(from.getHeaderField("Content-Range").orEmpty())
                if (range == null || range.groupValues[1].toLong() != have || range.groupValues[3] !in setOf("*", "${part.bytes}")) {
                    throw Anew("the server's range is another")
                }
                true
            }
            416 -> throw Anew("the server has no such range")
            else -> throw http.failure(from, part.path)
        }
        val coming = from.contentLengthLong
        if (coming >= 0 && coming != part.bytes - if (append) have else 0) {
            if (append) throw Anew("the server's range has another length")
            throw Phi3Exception("${part.path} has $coming bytes on the server, ${part.bytes} by the manifest: the server's bundle is not whole")
        }
        // Only a strong mark says that bytes are the same.
        from.getHeaderField("ETag")?.takeIf { it.startsWith('"') }?.let { writeWhole(mark, it.toByteArray()) } ?: mark.delete()
        if (!append) done -= have
        from.inputStream.use { stream -> write(part, stream, file, if (append) have else 0) }
    }

    private fun write(part: Manifest.Part, stream: InputStream, file: File, have: Long) {
        var length = have
        onDisk(file) { FileOutputStream(file, have > 0) }.use { out ->
            val piece = ByteArray(1 shl 16)
            while (true) {
                stopIfAsked()
                val count = stream.read(piece)
                if (count < 0) break
                length += count
                if (length > part.bytes) throw Phi3Exception("${part.path} is longer on the server than the manifest says: the server's bundle is another")
                onDisk(file) { out.write(piece, 0, count) }
                done += count
                show(Transfer.Progress(done, total, part.path))
            }
            onDisk(file) { out.fd.sync() }
        }
        if (length < part.bytes) throw Passing("the connection ended early")
    }

    private fun <T> onDisk(file: File, work: () -> T): T = try {
        work()
    } catch (error: IOException) {
        throw Phi3Exception("${file.parentFile} can't be written: ${error.message}; free some space, the download goes on from here", error)
    }

    // Repeats `work` through failures that pass.
    private fun <T> patiently(work: () -> T): T {
        var failed = 0
        while (true) {
            stopIfAsked()
            val before = done
            val error = try {
                return work()
            } catch (error: IOException) {
                error
            }
            stopIfAsked()
            failed = if (done > before) 1 else failed + 1
            val reason = error.message ?: error.javaClass.simpleName
            if (failed >= retry.attempts) {
                throw Phi3Exception("the download failed $failed times in a row ($reason): try again later, it goes on from here", error)
            }
            val pause = (error as? Passing)?.afterMs ?: minOf(retry.mostMs, retry.firstMs shl minOf(failed - 1, 20))
            show(Transfer.Waiting(pause, reason))
            wake.await(pause + (pause * Math.random() / 4).toLong(), TimeUnit.MILLISECONDS)
        }
    }
}
