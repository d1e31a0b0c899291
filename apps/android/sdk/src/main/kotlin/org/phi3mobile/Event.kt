package org.phi3mobile

/** What an answer consists of, in order; one [Done] ends it. */
public sealed class Event {
    /** A piece of the answer: whole characters. */
    public data class Text(val text: String) : Event()

    /** The sequence passed the model's original context: it was prefilled again with the long RoPE factors, once. */
    public data class LongRopeSwitch(val message: String) : Event()

    /** The context was full: the oldest turns were left out. */
    public data class WindowSlid(val message: String) : Event()

    /** Another thing to know: [kind] is "kv_back", "repetition", "picture" (one is looked at), "closed" (a guided answer near its limit) or
     * what a later library says. */
    public data class Note(val kind: String, val message: String) : Event()

    /** Tokens of a prefill that takes several steps. */
    public data class Progress(val done: Long, val total: Long) : Event()

    /** The answer asks for a function; [arguments]: a JSON object, valid under the tool's schema where the app has libllguidance.so. */
    public data class ToolCall(val name: String, val arguments: String) : Event()

    /** What that function gave: the model reads it and goes on. */
    public data class ToolResult(val name: String, val content: String) : Event()

    /** The answer ended. */
    public data class Done(val statistics: Statistics) : Event()
}

/** One answer in numbers; times are the work's, without what the collector took. */
public data class Statistics(
    /** "stop", "stop_string", "tool_calls", "length", "context_full", "repetition", "cancelled" or "error". */
    val finishReason: String,
    /** Tokens of the prompt, history included. */
    val promptTokens: Long,
    /** Of these, found in the KV cache. */
    val reusedTokens: Long,
    /** Tokens that were computed before the first token of the answer. */
    val prefilledTokens: Long,
    val generatedTokens: Long,
    /** Seconds from the call to the first token. */
    val ttftS: Double,
    val prefillTokensPerS: Double,
    val decodeTokensPerS: Double,
    /** Between two tokens of the answer: half of them came faster, and below 95 of 100. */
    val intervalP50Ms: Double,
    val intervalP95Ms: Double,
    /** Tokens that lookup proposed, and how many were right. */
    val drafted: Long,
    val accepted: Long,
    /** Messages that the sliding window left out. */
    val droppedMessages: Long,
    /** All of it as the library wrote it: one JSON object. */
    val json: String,
) {
    internal companion object {
        fun of(json: String): Statistics {
            val given = Json.parse(json, "the statistics") as? Map<*, *> ?: throw Phi3Exception("the statistics are no JSON object")
            val whole = { name: String -> (given[name] as? Number)?.toLong() ?: 0L }
            val number = { name: String -> (given[name] as? Number)?.toDouble() ?: 0.0 }
            return Statistics(
                given["finish_reason"] as? String ?: "",
                whole("prompt_tokens"), whole("reused_tokens"), whole("prefilled_tokens"), whole("generated_tokens"),
                number("ttft_s"), number("prefill_tokens_per_s"), number("decode_tokens_per_s"),
                number("interval_p50_ms"), number("interval_p95_ms"),
                whole("drafted"), whole("accepted"), whole("dropped_messages"), json,
            )
        }
    }
}

/** A message of a conversation. [role] is "system", "user", "assistant" or "tool", a result of the function [name]. [pictures]: a
 * user's; they go where the content says <|image_1|>, <|image_2|>, ... (numbers count through the conversation), else before it. */
public data class Message @JvmOverloads constructor(
    val role: String,
    val content: String,
    val name: String? = null,
    val pictures: List<Picture> = emptyList(),
)

/** How an answer is made. What is null is the bundle's own choice. */
public data class Generation(
    /** Null: no limit but the context. */
    val maxTokens: Int? = 512,
    /** Texts that end the answer. */
    val stop: List<String> = emptyList(),
    /** When the context is full: false ends the answer, true keeps the system message, drops the oldest turns and goes on. */
    val slide: Boolean = true,
    /** Draft by quoting prompt and answer: the same text, faster where it quotes. */
    val lookup: Boolean = false,
    /** Let an answer repeat itself for ever; else it is ended. */
    val repetition: Boolean = false,
    /** 0: greedy; above: how far the probabilities are flattened. */
    val temperature: Double? = null,
    /** So many of the likeliest tokens are drawn from; 0: all. */
    val topK: Int? = null,
    /** The likeliest tokens that together have this probability are drawn from; 1: all. */
    val topP: Double? = null,
    /** Tokens below this share of the likeliest one's probability are not drawn; 0: all are. */
    val minP: Double? = null,
    /** Divides the logits of tokens that were there already; 1: none. */
    val repetitionPenalty: Double? = null,
    /** The same seed draws the same answer; null: another one each time. */
    val seed: Long? = null,
    /**
     * A JSON schema: the answer is valid under it, and whole within [maxTokens] and the context. Greedy where nothing else is said.
     * This, [regex] and [grammar] exclude each other and tools; they need libllguidance.so in the app (docs/android.md).
     */
    val schema: String? = null,
    /** Objects of [schema] that declare names may have others where it does not say. */
    val additionalProperties: Boolean = false,
    /** What the whole answer matches, in Rust's syntax without lookaround. */
    val regex: String? = null,
    /** A Lark grammar in llguidance's dialect, with a rule `start`. */
    val grammar: String? = null,
) {
    /** All defaults, for Java. */
    public constructor() : this(512)

    /** For Java: `new Generation.Builder().maxTokens(64).build()`. Each sets what [Generation] has by its name. */
    public class Builder {
        private var made = Generation()

        public fun maxTokens(value: Int?): Builder = apply { made = made.copy(maxTokens = value) }
        public fun stop(vararg texts: String): Builder = apply { made = made.copy(stop = texts.toList()) }
        public fun slide(value: Boolean): Builder = apply { made = made.copy(slide = value) }
        public fun lookup(value: Boolean): Builder = apply { made = made.copy(lookup = value) }
        public fun repetition(value: Boolean): Builder = apply { made = made.copy(repetition = value) }
        public fun temperature(value: Double?): Builder = apply { made = made.copy(temperature = value) }
        public fun topK(value: Int?): Builder = apply { made = made.copy(topK = value) }
        public fun topP(value: Double?): Builder = apply { made = made.copy(topP = value) }
        public fun minP(value: Double?): Builder = apply { made = made.copy(minP = value) }
        public fun repetitionPenalty(value: Double?): Builder = apply { made = made.copy(repetitionPenalty = value) }
        public fun seed(value: Long?): Builder = apply { made = made.copy(seed = value) }
        public fun schema(value: String?): Builder = apply { made = made.copy(schema = value) }
        public fun additionalProperties(value: Boolean): Builder = apply { made = made.copy(additionalProperties = value) }
        public fun regex(value: String?): Builder = apply { made = made.copy(regex = value) }
        public fun grammar(value: String?): Builder = apply { made = made.copy(grammar = value) }

        /** What was set, and defaults for the rest. */
        public fun build(): Generation = made
    }

    internal fun request(prompt: Pair<String, Any>, tools: List<Tool> = emptyList()): String {
        val all = linkedMapOf<String, Any?>(prompt, "max_tokens" to maxTokens)
        if (stop.isNotEmpty()) all["stop"] = stop
        if (tools.isNotEmpty()) all["tools"] = tools.map { it.told }
        if (slide && prompt.first == "messages") all["overflow"] = "slide"
        if (lookup) all["lookup"] = true
        if (repetition) all["repetition"] = true
        val sampling = mapOf(
            "temperature" to temperature, "top_k" to topK, "top_p" to topP, "min_p" to minP,
            "repetition_penalty" to repetitionPenalty, "seed" to seed,
        )
        val guide = mapOf("schema" to schema, "regex" to regex, "grammar" to grammar)
        if (additionalProperties) all["additional_properties"] = true
        (sampling + guide).filterValues { it != null }.forEach { (name, value) -> all[name] = value }
        return Json.write(all)
    }
}
