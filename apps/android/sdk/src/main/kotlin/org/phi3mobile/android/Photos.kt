package org.phi3mobile.android

import android.graphics.Bitmap
import android.graphics.BitmapFactory
import android.media.ExifInterface
import org.phi3mobile.Phi3Exception
import org.phi3mobile.Picture

/** Pictures of Android's own kind. */
public object Photos {
    /**
     * A bitmap's pixels. [orientation]: of the photo's EXIF (ExifInterface's TAG_ORIENTATION; 0 counts as 1), for BitmapFactory does
     * not turn what it decodes; ImageDecoder does, then leave it out. The model shows at most 1344 pixels to a side for most photos:
     * decoding with inSampleSize saves memory and costs nothing while the result stays above that.
     */
    @JvmStatic
    @JvmOverloads
    public fun picture(bitmap: Bitmap, orientation: Int = 1): Picture {
        val colors = IntArray(bitmap.width * bitmap.height)
        bitmap.getPixels(colors, 0, bitmap.width, 0, 0, bitmap.width, bitmap.height)
        return Picture.ofColors(colors, bitmap.width, bitmap.height, maxOf(1, orientation))
    }

    /** The picture in a photo's file, for [org.phi3mobile.Session.restore]. Throws Phi3Exception: Android decodes no such file. */
    @JvmStatic
    public fun decode(file: ByteArray): Picture {
        val bitmap = BitmapFactory.decodeByteArray(file, 0, file.size)
            ?: throw Phi3Exception("a picture of ${file.size} bytes is none that Android decodes: show it again as JPEG or PNG")
        val exif = runCatching { ExifInterface(file.inputStream()) }.getOrNull() // null: a format that has none
        return picture(bitmap, exif?.getAttributeInt(ExifInterface.TAG_ORIENTATION, 1) ?: 1)
    }
}
