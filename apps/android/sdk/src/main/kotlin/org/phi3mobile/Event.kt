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
