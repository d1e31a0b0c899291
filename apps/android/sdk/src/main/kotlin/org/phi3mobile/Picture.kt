package org.phi3mobile

/**
 * A picture for a message: 8-bit pixels in rows without gaps, red first, of 3 bytes (RGB) or 4 (RGBA, alpha not multiplied in; it
 * lies over white). [orientation]: EXIF's number, 1 (as it lies) to 8, which BitmapFactory does not apply. Not copied: leave the array
 * as it is while a conversation has the picture. Throws Phi3Exception: the array is of another size.
 */
public class Picture @JvmOverloads constructor(
    internal val pixels: ByteArray,
    public val width: Int,
    public val height: Int,
    public val orientation: Int = 1,
) {
    internal val channels: Int

    init {
        val count = width.toLong() * height
        if (width < 1 || height < 1 || (pixels.size.toLong() != 3 * count && pixels.size.toLong() != 4 * count)) {
            throw Phi3Exception("a picture of $width × $height pixels has ${pixels.size} bytes; give 3 (RGB) or 4 (RGBA) a pixel")
        }
        channels = (pixels.size / count).toInt()
    }

    public companion object {
        /** Of colours as Bitmap.getPixels gives them: 0xAARRGGBB, alpha not multiplied in. */
        @JvmStatic
        @JvmOverloads
        public fun ofColors(colors: IntArray, width: Int, height: Int, orientation: Int = 1): Picture {
            val pixels = ByteArray(4 * colors.size)
            colors.forEachIndexed { index, color ->
                pixels[4 * index] = (color shr 16).toByte()
                pixels[4 * index + 1] = (color shr 8).toByte()
                pixels[4 * index + 2] = color.toByte()
                pixels[4 * index + 3] = (color ushr 24).toByte()
            }
            return Picture(pixels, width, height, orientation)
        }
    }
}
