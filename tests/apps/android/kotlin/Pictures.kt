package tests

import java.io.File
import org.phi3mobile.Event
import org.phi3mobile.Generation
import org.phi3mobile.ModelOptions
import org.phi3mobile.Phi3Model
import org.phi3mobile.Picture

/** As test_sdk_pictures.py draws them: opaque. */
private fun colors(width: Int, height: Int) = IntArray(width * height) { 0xFF shl 24 or (it * 7919 and 0xFFFFFF) }

val pictures: Map<String, Check> = mapOf(
    // ARGUMENTS: three messages: about a picture, about nothing new, about that and another picture. Prints the texts.
    "pictures" to { given ->
        val options = ModelOptions(threads = 2, cache = File(given.scratch, "cache"), numCrops = 2)
        Phi3Model.open(given.bundle, options).use { model ->
            val session = model.session(generation = Generation(maxTokens = 6, repetition = true, slide = false))
            val wide = Picture.ofColors(colors(40, 30), 40, 30)
            val lying = Picture(ByteArray(3 * 20 * 60) { (it * 31).toByte() }, 20, 60, 6)
            for ((index, shown) in listOf(listOf(wide), emptyList(), listOf(lying)).withIndex()) {
                if (index == 2) model.unload() // the library forgets its pictures
                val events = ArrayList<Event>()
                session.send(given.arguments[index], pictures = shown).collect { events += it }
                println("text ${quoted(events.filterIsInstance<Event.Text>().joinToString("") { it.text })}")
                same(events.filterIsInstance<Event.Note>().count { it.kind == "picture" }, listOf(1, 0, 2)[index], "looks")
            }
            same(session.history[0].pictures, listOf(wide))
            refused("pictures, which no file keeps") { session.save(given.scratch) }
            refused("never says <|image_3|>") { session.send("<|image_1|>", pictures = listOf(wide)).collect {} }
            same(session.history.size, 6)
            refused("5 × 5 pixels has 10 bytes") { Picture(ByteArray(10), 5, 5) }
            refused("0 × 5 pixels has 0 bytes") { Picture.ofColors(IntArray(0), 0, 5) }
            refused("too narrow") { session.send("What?", pictures = listOf(Picture(ByteArray(3 * 5000), 5000, 1))).collect {} }
            refused("orientation is 9") { session.send("What?", pictures = listOf(Picture(ByteArray(3), 1, 1, 9))).collect {} }
        }
    },

    "blind" to { given ->
        refused("num_crops is 4: this model sees no pictures") { Phi3Model.open(given.bundle, ModelOptions(numCrops = 4)) }
        Phi3Model.open(given.bundle, given.options()).use { model ->
            refused("reads text only") { model.session().send("What?", pictures = listOf(Picture(ByteArray(3), 1, 1))).collect {} }
        }
    },
)
