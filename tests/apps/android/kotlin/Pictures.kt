package tests

import org.phi3mobile.Conversation
import org.phi3mobile.Event
import org.phi3mobile.Generation
import org.phi3mobile.Json
import org.phi3mobile.Message
import org.phi3mobile.ModelOptions
import org.phi3mobile.Phi3Model
import org.phi3mobile.Picture
import org.phi3mobile.Png
import java.io.File
import javax.imageio.ImageIO

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
            refused("never says <|image_3|>") { session.send("<|image_1|>", pictures = listOf(wide)).collect {} }
            same(session.history.size, 6)
            refused("5 × 5 pixels has 10 bytes") { Picture(ByteArray(10), 5, 5) }
            refused("0 × 5 pixels has 0 bytes") { Picture.ofColors(IntArray(0), 0, 5) }
            refused("too narrow") { session.send("What?", pictures = listOf(Picture(ByteArray(3 * 5000), 5000, 1))).collect {} }
            refused("orientation is 9") { session.send("What?", pictures = listOf(Picture(ByteArray(3), 1, 1, 9))).collect {} }
        }
    },

    // ARGUMENTS: a message about a glassy picture, one about it and a lying one, a question. Prints how much is known after it was kept
    // and read again, how much of the prompt was, and the answer to the question, which is the same there and here.
    "kept" to { given ->
        val generation = Generation(maxTokens = 6, repetition = true, slide = false)
        val options = ModelOptions(threads = 2, cache = File(given.scratch, "cache"), numCrops = 2)
        val glassy = Picture.ofColors(IntArray(40 * 30) { it * 1700007 }, 40, 30) // alpha 0 to 121
        val lying = Picture(ByteArray(3 * 20 * 60) { (it * 31).toByte() }, 20, 60, 6)
        val (about, both, question) = given.arguments
        val folder = File(given.scratch, "kept")
        val answer = Phi3Model.open(given.bundle, options).use { model ->
            val session = model.session("Be brief.", generation)
            session.send(about, pictures = listOf(glassy)).collect {}
            session.send(both, pictures = listOf(lying)).collect {}
            session.save(folder)
            session.answered(question).text
        }
        Phi3Model.open(given.bundle, options).use { model ->
            val session = model.session("Be brief.", generation)
            val known = session.restore(folder)
            same(session.history.map { it.pictures.size }, listOf(1, 0, 1, 0))
            same(session.history[2].pictures[0].run { listOf(width, height, orientation) }, listOf(60, 20, 1))
            val found = session.answered(question)
            same(found.text, answer)
            println("known $known ${found.done.reusedTokens}")
            println("text ${quoted(answer)}")
        }
    },

    // ARGUMENTS: a folder with a conversation of Python's, a message. Prints the answer.
    "resumed" to { given ->
        val folder = File(given.arguments[0])
        val decode = { file: ByteArray ->
            val image = ImageIO.read(file.inputStream())
            Picture.ofColors(image.getRGB(0, 0, image.width, image.height, null, 0, image.width), image.width, image.height)
        }
        Phi3Model.open(given.bundle, ModelOptions(threads = 2, numCrops = 2)).use { model ->
            val session = model.session("Be brief.", Generation(maxTokens = 6, repetition = true, slide = false))
            refused("no plain PNG", "Photos::decode") { session.restore(folder) }
            same(session.history, emptyList<Message>())
            session.restore(folder, decode)
            println("text ${quoted(session.answered(given.arguments[1]).text)}")
        }
    },

    // ARGUMENT: a folder. Writes NAME.png for each NAME.raw of write.json, and reads NAME.png of read.json as NAME.raw.
    "png" to { given ->
        val folder = File(given.arguments[0])
        fun listed(name: String) = (Json.parse(File(folder, name).readText(), name) as List<*>).map { it as List<*> }
        for ((name, width, height, orientation) in listed("write.json")) {
            val raw = File(folder, "$name.raw").readBytes()
            val picture = Picture(raw, (width as Long).toInt(), (height as Long).toInt(), (orientation as Long).toInt())
            val file = Png.write(picture).also { File(folder, "$name.png").writeBytes(it) }
            same(Png.read(file)!!.run { Png.write(this).toList() }, file.toList())
        }
        for ((name) in listed("read.json")) {
            val file = File(folder, "$name.png").readBytes()
            holds(Png.read(file)!!.pixels.contentEquals(File(folder, "$name.raw").readBytes()), "$name has other pixels")
            for (cut in listOf(8, 20, file.size / 2, file.size - 1)) refused("cut short or damaged") { Png.read(file.copyOf(cut)) }
            for (at in listOf(17, 40, file.size / 2)) {
                refused("cut short or damaged") { Png.read(file.copyOf().also { it[at] = (it[at] + 1).toByte() }) }
            }
        }
        for (name in listOf("palette.png", "grey.png", "turned.png", "none.bmp")) {
            same(Png.read(File(folder, name).readBytes()), null, name)
        }
        same(Png.read(ByteArray(3)), null)
        refused("orientation is 9") { Png.write(Picture(ByteArray(3), 1, 1, 9)) }
    },

    // ARGUMENTS: conversations, as JSON. Prints what is wrong with each.
    "unreadable" to { given ->
        for (text in given.arguments) {
            val file = File(given.scratch, "conversation.json").apply { writeText(text) }
            println(refused("conversation.json") { Conversation.read(file, null) })
        }
    },

    "blind" to { given ->
        refused("num_crops is 4: this model sees no pictures") { Phi3Model.open(given.bundle, ModelOptions(numCrops = 4)) }
        Phi3Model.open(given.bundle, given.options()).use { model ->
            refused("reads text only") { model.session().send("What?", pictures = listOf(Picture(ByteArray(3), 1, 1))).collect {} }
        }
    },
)
