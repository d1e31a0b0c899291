package org.phi3mobile

import java.nio.FloatBuffer

/**
 * A runtime of the app's own, in the place of the library's: it computes, the session does the rest. All calls come from the model's
 * thread. What it throws ends the answer with the exception's message.
 */
public interface Engine : AutoCloseable {
    /**
     * Runs [tokens] at position, position + 1, ... and writes float32 [tokens.size, vocab] into [logits]. Rows of the KV cache from
     * [position] on are overwritten, so it may go back. [isLong]: these rows get LongRoPE's long factors.
     */
    public fun forward(tokens: LongArray, position: Long, isLong: Boolean, logits: FloatBuffer)

    /** Forgets the sequence. */
    public fun reset() {}

    override fun close() {}
}
