package org.phi3mobile

import java.io.ByteArrayInputStream
import java.io.ByteArrayOutputStream
import java.io.DataInputStream
import java.io.DataOutputStream
import java.io.IOException
import java.util.zip.CRC32
import java.util.zip.DeflaterOutputStream
import java.util.zip.InflaterInputStream
import kotlin.math.abs

/** Pictures as files without loss, on Android and on the JVM alike: PNG of eight bits, RGB or RGBA, not interlaced. */
internal object Png {
    private val SIGNATURE = byteArrayOf(0x89.toByte(), 0x50, 0x4E, 0x47, 0x0D, 0x0A, 0x1A, 0x0A)
    private const val RGB = 2
    private const val RGBA = 6
    private const val SUB: Byte = 1 // each byte less that of the pixel before
    private const val MOST_PIXELS = 128_000_000L // as the library takes
    private const val MOST_INFLATED = 1032L // a deflated byte gives no more

    /** The picture as it is to be seen: EXIF's orientation is applied. */
    fun write(picture: Picture): ByteArray {
        val orientation = picture.orientation
        if (orientation !in 1..8) throw Phi3Exception("a picture's orientation is $orientation: give EXIF's, 1 to 8")
        val (width, height) = if (orientation < 5) picture.width to picture.height else picture.height to picture.width
        val mirrored = orientation in listOf(2, 3, 6, 7)
        val flipped = orientation in listOf(3, 4, 7, 8)
        val channels = picture.channels
        val packed = ByteArrayOutputStream()
        DeflaterOutputStream(packed).use { out ->
            val row = ByteArray(1 + channels * width)
            row[0] = SUB
            for (y in 0 until height) {
                for (x in 0 until width) {
                    val left = if (mirrored) width - 1 - x else x
                    val top = if (flipped) height - 1 - y else y
                    val from = if (orientation < 5) top * picture.width + left else left * picture.width + top
                    picture.pixels.copyInto(row, 1 + channels * x, channels * from, channels * (from + 1))
                }
                for (at in row.lastIndex downTo 1 + channels) row[at] = (row[at] - row[at - channels]).toByte()
                out.write(row)
            }
        }
        val file = ByteArrayOutputStream()
        file.write(SIGNATURE)
        val about = ByteArrayOutputStream(13)
        DataOutputStream(about).run {
            writeInt(width)
            writeInt(height)
            write(byteArrayOf(8, (if (channels == 3) RGB else RGBA).toByte(), 0, 0, 0))
        }
        chunk(file, "IHDR", about.toByteArray())
        chunk(file, "IDAT", packed.toByteArray())
        chunk(file, "IEND", ByteArray(0))
        return file.toByteArray()
    }

    private fun chunk(file: ByteArrayOutputStream, name: String, data: ByteArray) {
        val named = name.toByteArray() + data
        DataOutputStream(file).run {
            writeInt(data.size)
            write(named)
            writeInt(sum(named))
        }
    }

    private fun sum(bytes: ByteArray): Int = CRC32().apply { update(bytes) }.value.toInt()

    /** Null: another format, or a PNG of another kind. Throws Phi3Exception: it is damaged. */
    fun read(file: ByteArray): Picture? {
        if (file.size < SIGNATURE.size || !file.copyOf(SIGNATURE.size).contentEquals(SIGNATURE)) return null
        return try {
            picture(DataInputStream(ByteArrayInputStream(file, SIGNATURE.size, file.size - SIGNATURE.size)))
        } catch (error: IOException) {
            throw Phi3Exception("a picture is cut short or damaged (${error.message ?: "it ends early"}): copy it again", error)
        }
    }

    private fun picture(input: DataInputStream): Picture? {
        var about: ByteArray? = null
        val packed = ByteArrayOutputStream()
        while (true) {
            val size = input.readInt()
            if (size < 0 || size > input.available() - 8) throw IOException("a part is longer than the file")
            val named = ByteArray(4 + size).also(input::readFully)
            if (sum(named) != input.readInt()) throw IOException("a sum is wrong")
            when (String(named, 0, 4, Charsets.ISO_8859_1)) {
                "IHDR" -> about = named.copyOfRange(4, named.size)
                "IDAT" -> packed.write(named, 4, size)
                "tRNS", "eXIf" -> return null // a colour that is none; another orientation
                "IEND" -> break
            }
        }
        if (about?.size != 13) throw IOException("it says no size")
        val header = DataInputStream(ByteArrayInputStream(about))
        val width = header.readInt()
        val height = header.readInt()
        val kind = List(5) { header.readUnsignedByte() } // bits, colours, packing, filters, interlacing
        val channels = mapOf(RGB to 3, RGBA to 4)[kind[1]]
        if (channels == null || kind[0] != 8 || kind.drop(2).any { it != 0 }) return null
        val pixels = width.toLong() * height
        if (width < 1 || height < 1 || pixels > MOST_PIXELS) throw IOException("it has $width × $height pixels")
        if (pixels * channels > MOST_INFLATED * packed.size()) throw IOException("it ends early")
        return Picture(inflated(packed.toByteArray(), height, channels * width, channels), width, height)
    }

    private fun inflated(packed: ByteArray, height: Int, stride: Int, channels: Int): ByteArray {
        val out = ByteArray(height * stride)
        DataInputStream(InflaterInputStream(ByteArrayInputStream(packed))).use { rows ->
            for (start in 0 until height * stride step stride) {
                val filter = rows.readUnsignedByte()
                rows.readFully(out, start, stride)
                for (at in start until start + stride) {
                    val left = if (at - start < channels) 0 else out[at - channels].toInt() and 0xFF
                    val up = if (start == 0) 0 else out[at - stride].toInt() and 0xFF
                    val corner = if (start == 0 || at - start < channels) 0 else out[at - stride - channels].toInt() and 0xFF
                    out[at] = (out[at] + guess(filter, left, up, corner)).toByte()
                }
            }
        }
        return out
    }

    private fun guess(filter: Int, left: Int, up: Int, corner: Int): Int = when (filter) {
        0 -> 0
        1 -> left
        2 -> up
        3 -> (left + up) / 2
        4 -> {
            val (toLeft, toUp, toCorner) = Triple(abs(up - corner), abs(left - corner), abs(left + up - 2 * corner))
            when {
                toLeft <= toUp && toLeft <= toCorner -> left
                toUp <= toCorner -> up
                else -> corner
            }
        }
        else -> throw IOException("a row is of the kind $filter")
    }
}
