package org.phi3mobile

import java.io.File
import java.io.FileOutputStream
import java.io.IOException

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
