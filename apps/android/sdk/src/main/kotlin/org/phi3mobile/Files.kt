package org.phi3mobile

import java.io.File
import java.io.FileInputStream
import java.io.FileOutputStream
import java.io.IOException
import java.io.RandomAccessFile
import java.nio.channels.FileLock
import java.nio.channels.OverlappingFileLockException
import java.security.MessageDigest

internal const val SPARE = 64L shl 20 // bytes to leave free
private const val LOCK = "lock"

/** Writes a file whole or not at all. */
internal fun writeWhole(file: File, bytes: ByteArray) {
    val beside = File(file.path + ".part")
    try {
        FileOutputStream(beside).use {
            it.write(bytes)
            it.fd.sync()
        }
        if (!beside.renameTo(file)) throw IOException("it can't be renamed")
    } catch (error: IOException) {
        beside.delete()
        throw Phi3Exception("$file can't be written: ${error.message}; free some space or choose another place", error)
    }
}

/** Throws Phi3Exception: no room for so many more bytes. */
internal fun requireRoom(folder: File, bytes: Long, free: (File) -> Long) {
    val left = free(folder)
    if (left < bytes + SPARE) {
        throw Phi3Exception("there is no room: ${Memory.gigabytes(bytes)} are to come, ${Memory.gigabytes(left)} are free; delete something first")
    }
}

/** SHA-256 of a file, lower case; [each]: bytes of every piece. */
internal fun hashed(file: File, each: (Int) -> Unit): String {
    val digest = MessageDigest.getInstance("SHA-256")
    FileInputStream(file).use { stream ->
        val piece = ByteArray(1 shl 18)
        while (true) {
            val count = stream.read(piece)
            if (count < 0) break
            digest.update(piece, 0, count)
            each(count)
        }
    }
    return hex(digest)
}

internal fun hex(digest: MessageDigest): String = digest.digest().joinToString("") { "%02x".format(it) }

/** Throws Phi3Exception: another process or flow holds the folder. */
internal fun locked(folder: File, work: () -> Unit) {
    val file = File(folder, LOCK)
    RandomAccessFile(file, "rw").use { opened ->
        val lock: FileLock? = try {
            opened.channel.tryLock()
        } catch (error: OverlappingFileLockException) {
            null
        }
        if (lock == null) throw Phi3Exception("another transfer of this model is running: wait for it or cancel it")
        lock.use { work() }
    }
}
