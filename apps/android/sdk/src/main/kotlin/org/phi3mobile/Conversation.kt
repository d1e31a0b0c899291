package org.phi3mobile

import java.io.File
import java.util.Base64

/** A message of a conversation. [role] is "system", "user", "assistant" or "tool", a result of the function [name]. [pictures]: a
 * user's; they go where the content says <|image_1|>, <|image_2|>, ... (numbers count through the conversation), else before it. */
public data class Message @JvmOverloads constructor(
    val role: String,
    val content: String,
    val name: String? = null,
    val pictures: List<Picture> = emptyList(),
)

/** conversation.json, as `phi3mobile chat` writes it: messages in order, their pictures within them as data: URIs. */
internal object Conversation {
    private const val FORMAT = "phi3mobile-conversation"
    private const val PNG = "data:image/png;base64,"
    private val PLACE = Regex("<\\|image_\\d+\\|>")

    /** A message as requests and files have it; [shown]: what stands for a picture. */
    fun told(message: Message, shown: (Picture) -> Any): Map<String, Any> {
        val images = message.pictures.map { mapOf("type" to "image", "image" to shown(it)) }
        val content: Any = if (images.isEmpty()) message.content else images + mapOf("type" to "text", "text" to message.content)
        return mapOf("role" to message.role, "content" to content) + (message.name?.let { mapOf("name" to it) } ?: emptyMap())
    }

    /** Pictures become PNGs, upright: they need no other file. */
    fun write(file: File, messages: List<Message>) {
        val told = messages.map { message -> told(message) { PNG + Base64.getEncoder().encodeToString(Png.write(it)) } }
        writeWhole(file, Json.write(linkedMapOf("format" to FORMAT, "version" to 1L, "messages" to told)).toByteArray())
    }

    /** [decode]: a picture's file that [Png] does not read. Throws Phi3Exception: no conversation, a message that this can't be. */
    fun read(file: File, decode: ((ByteArray) -> Picture)?): List<Message> {
        val text = runCatching { file.readText() }.getOrElse { throw Phi3Exception("$file can't be read: give a folder that Session.save wrote", it) }
        val all = Json.parse(text, file.path) as? Map<*, *>
        val given = (all?.get("messages") as? List<*>)?.takeIf { all["format"] == FORMAT }
            ?: throw Phi3Exception("$file is no conversation: give a folder that Session.save wrote")
        val messages = ArrayList<Message>()
        var seen = 0
        for (one in given.map { it as? Map<*, *> }) {
            val where = "message ${messages.size} of $file"
            val role = one?.get("role") as? String ?: throw Phi3Exception("$where has no role: give a folder that Session.save wrote")
            messages += when (val content = one["content"]) {
                is String -> Message(role, content, one["name"] as? String)
                is List<*> -> shown(role, content, seen, where, decode)
                else -> throw Phi3Exception("$where has no content: give a folder that Session.save wrote")
            }
            seen += messages.last().pictures.size
        }
        return messages
    }

    /** A message of texts and images in any order; a picture below a text is given its place by a number, [before] are taken. */
    private fun shown(role: String, parts: List<*>, before: Int, where: String, decode: ((ByteArray) -> Picture)?): Message {
        val texts = parts.map { part -> (part as? Map<*, *>)?.takeIf { it["type"] == "text" }?.get("text") as? String }
        val placed = texts.any { it != null && PLACE.containsMatchIn(it) }
        val images = texts.count { it == null }
        if (placed && images == 0) throw Phi3Exception("$where names a picture of before and shows none: only `phi3mobile` reads it")
        val below = texts.indexOfFirst { !it.isNullOrEmpty() }.let { it >= 0 && texts.drop(it).any { text -> text == null } }
        val pictures = ArrayList<Picture>()
        val content = StringBuilder()
        for ((part, text) in parts.zip(texts)) {
            if (text == null) {
                pictures += picture((part as? Map<*, *>)?.get("image") as? String, where, decode)
                if (below && !placed) content.append("<|image_${before + pictures.size}|>\n")
            } else {
                content.append(text)
            }
        }
        return Message(role, content.toString(), pictures = pictures)
    }

    private fun picture(uri: String?, where: String, decode: ((ByteArray) -> Picture)?): Picture {
        val (head, data) = uri?.split(",", limit = 2)?.takeIf { it.size == 2 && it[0].startsWith("data:") && it[0].endsWith(";base64") }
            ?: throw Phi3Exception("$where shows ${uri?.take(60) ?: "nothing"}: only pictures that lie in it as data: URIs are read")
        val file = try {
            Base64.getDecoder().decode(data)
        } catch (error: IllegalArgumentException) {
            throw Phi3Exception("$where has a picture that is not base64: save the conversation again", error)
        }
        return Png.read(file) ?: decode?.invoke(file)
            ?: throw Phi3Exception("$where has a picture ($head, ${file.size} bytes) that is no plain PNG: give restore a decoder, as Photos::decode")
    }
}
