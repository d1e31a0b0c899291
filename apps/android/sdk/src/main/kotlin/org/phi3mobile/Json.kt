package org.phi3mobile

/**
 * JSON as Kotlin values: Map, List, String, Long, Double, Boolean, null. Android has org.json and the JVM has nothing; this is what
 * both have. Numbers without fraction and exponent that fit are Long.
 */
internal object Json {
    private const val DEEPEST = 200

    /** Throws Phi3Exception: what is wrong and where; [what] names the text. */
    fun parse(text: String, what: String): Any? = Reader(text, what).document()

    fun write(value: Any?): String = StringBuilder().also { write(value, it) }.toString()

    private fun write(value: Any?, out: StringBuilder) {
        when (value) {
            null, is Boolean, is Int, is Long -> out.append(value)
            is Float -> write(value.toString().toDouble(), out)
            is Double -> {
                if (value.isNaN() || value.isInfinite()) throw Phi3Exception("$value is no number that JSON has: give a finite one")
                out.append(value)
            }
            is String -> quote(value, out)
            is Map<*, *> -> {
                out.append('{')
                value.entries.forEachIndexed { index, (key, item) ->
                    if (index > 0) out.append(',')
                    quote(key as String, out)
                    out.append(':')
                    write(item, out)
                }
                out.append('}')
            }
            is List<*> -> {
                out.append('[')
                value.forEachIndexed { index, item ->
                    if (index > 0) out.append(',')
                    write(item, out)
                }
                out.append(']')
            }
            else -> throw IllegalArgumentException("${value.javaClass} has no JSON")
        }
    }

    private fun quote(text: String, out: StringBuilder) {
        out.append('"')
        for (letter in text) {
            when {
                letter == '"' || letter == '\\' -> out.append('\\').append(letter)
                letter < ' ' -> out.append("\\u").append(letter.code.toString(16).padStart(4, '0'))
                else -> out.append(letter)
            }
        }
        out.append('"')
    }

    private class Reader(private val text: String, private val what: String) {
        private var at = 0

        fun document(): Any? {
            val value = value(0)
            blanks()
            if (at < text.length) wrong("something follows the end")
            return value
        }

        private fun wrong(reason: String): Nothing = throw Phi3Exception("$what is no JSON: $reason at character $at")

        private fun blanks() {
            while (at < text.length && text[at] in " \t\r\n") at++
        }

        private fun take(letter: Char): Boolean {
            blanks()
            if (at >= text.length || text[at] != letter) return false
            at++
            return true
        }

        private fun value(depth: Int): Any? {
            if (depth > DEEPEST) wrong("it is nested deeper than $DEEPEST")
            blanks()
            if (at >= text.length) wrong("it ends early")
            return when (text[at]) {
                '{' -> members(depth)
                '[' -> items(depth)
                '"' -> string()
                't' -> word("true", true)
                'f' -> word("false", false)
                'n' -> word("null", null)
                else -> number()
            }
        }

        private fun members(depth: Int): Map<String, Any?> {
            val found = LinkedHashMap<String, Any?>()
            take('{')
            if (take('}')) return found
            do {
                blanks()
                if (at >= text.length || text[at] != '"') wrong("a name was expected")
                val name = string()
                if (!take(':')) wrong("a colon was expected")
                found[name] = value(depth + 1)
            } while (take(','))
            if (!take('}')) wrong("a comma or } was expected")
            return found
        }

        private fun items(depth: Int): List<Any?> {
            val found = ArrayList<Any?>()
            take('[')
            if (take(']')) return found
            do found.add(value(depth + 1)) while (take(','))
            if (!take(']')) wrong("a comma or ] was expected")
            return found
        }

        private fun word(word: String, value: Any?): Any? {
            if (!text.startsWith(word, at)) wrong("a value was expected")
            at += word.length
            return value
        }

        private fun string(): String {
            val out = StringBuilder()
            at++
            while (true) {
                if (at >= text.length) wrong("a text does not end")
                val letter = text[at++]
                when {
                    letter == '"' -> return out.toString()
                    letter < ' ' -> wrong("a control character stands in a text")
                    letter != '\\' -> out.append(letter)
                    else -> out.append(escaped())
                }
            }
        }

        private fun escaped(): Char {
            if (at >= text.length) wrong("a text does not end")
            return when (val letter = text[at++]) {
                '"', '\\', '/' -> letter
                'b' -> '\b'
                'f' -> '\u000c'
                'n' -> '\n'
                'r' -> '\r'
                't' -> '\t'
                'u' -> {
                    val code = text.substring(at, minOf(at + 4, text.length))
                    if (code.length < 4 || !code.all { it in '0'..'9' || it in 'a'..'f' || it in 'A'..'F' }) wrong("a \\u is cut")
                    at += 4
                    code.toInt(16).toChar()
                }
                else -> wrong("an unknown escape stands")
            }
        }

        private fun number(): Any {
            val found = NUMBER.find(text, at)?.takeIf { it.range.first == at } ?: wrong("a value was expected")
            at = found.range.last + 1
            return found.value.toLongOrNull() ?: found.value.toDouble()
        }
    }

    private val NUMBER = Regex("-?(0|[1-9][0-9]*)(\\.[0-9]+)?([eE][-+]?[0-9]+)?")
}
