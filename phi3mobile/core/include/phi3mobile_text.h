/* Text to token ids and back, and conversations to ids: the tokenizer of a bundle's folder, ids equal to the Python package's.
 * Texts are UTF-8. Functions that can fail take error, at which one line of at most error_size - 1 bytes and a 0 is written
 * then (error may be null or error_size 0: nothing is); they give null or -1. Nothing here throws or keeps global state. */
#ifndef PHI3MOBILE_TEXT_H
#define PHI3MOBILE_TEXT_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#ifndef P3M_API
#define P3M_API __attribute__((visibility("default")))
#endif

/* A vocabulary: never changes once open, any number of threads may use it at once. */
typedef struct p3m_tokenizer p3m_tokenizer;

/* Tokens becoming text: used by one thread at a time. */
typedef struct p3m_stream p3m_stream;

/* Reads tokenizer.json, tokenizer.model or *.tiktoken of a folder, with tokenizer_config.json and special_tokens_map.json
 * beside it. The caller owns the result until p3m_tokenizer_close. Fails on what is missing, damaged or of a kind that is not
 * read here, by name. */
P3M_API p3m_tokenizer* p3m_tokenizer_open(const char* folder, char* error, size_t error_size);

/* Frees it; null is nothing. Streams of it must be closed before. */
P3M_API void p3m_tokenizer_close(p3m_tokenizer* tokenizer);

/* 1 + the greatest id. */
P3M_API int64_t p3m_vocab_size(const p3m_tokenizer* tokenizer);

/* Id of the control token spelled text (<|end|>); -1: there is none. */
P3M_API int64_t p3m_control_id(const p3m_tokenizer* tokenizer, const char* text);

/* 1 if the id is a control token's, else 0. */
P3M_API int p3m_is_control(const p3m_tokenizer* tokenizer, int64_t id);

/* The bytes a token stands for, *size of them, which the tokenizer owns; none for an id without a token. They may be part of a
 * character and are not ended by a 0. */
P3M_API const char* p3m_token_bytes(const p3m_tokenizer* tokenizer, int64_t id, size_t* size);

/* Ids of size bytes of text; no begin token is added. special: 1 reads control-token text as control tokens, 0 as plain text.
 * Gives how many ids there are, of which up to capacity are stored in ids (null with capacity 0 counts only). Fails on text
 * that is not UTF-8, and on plain text that the vocabulary can read as a control token only. */
P3M_API int64_t p3m_encode(const p3m_tokenizer* tokenizer, const char* text, size_t size, int special, int64_t* ids,
    size_t capacity, char* error, size_t error_size);

/* The same of the joined texts of spans, a JSON list [["text", true], ...]: control tokens are recognised where the second
 * member, trusted, is true. The ids are p3m_encode's unless an untrusted span takes part in control-token text. */
P3M_API int64_t p3m_encode_spans(
    const p3m_tokenizer* tokenizer, const char* spans, int64_t* ids, size_t capacity, char* error, size_t error_size);

/* The same of a conversation: segments as in a bundle's manifest, messages as [{"role": "user", "content": "..."}, ...], both
 * JSON texts. The last message is the user's; the ids end where the reply begins. Control-token text in contents stays text. */
P3M_API int64_t p3m_encode_chat(const p3m_tokenizer* tokenizer, const char* segments, const char* messages, int64_t* ids,
    size_t capacity, char* error, size_t error_size);

/* Text of count ids as one sequence, control tokens as their text, malformed bytes as U+FFFD. Gives its size in bytes, of which
 * up to capacity are stored in text, without a 0 at the end. Fails only where memory does. */
P3M_API int64_t p3m_decode(const p3m_tokenizer* tokenizer, const int64_t* ids, size_t count, char* text, size_t capacity,
    char* error, size_t error_size);

/* A stream that leaves control tokens out. at_start: 1 if the text starts here, 0 if it continues a prompt, in which case a
 * sentencepiece reply starts with the space of its first piece. The caller owns it until p3m_stream_close. */
P3M_API p3m_stream* p3m_stream_open(const p3m_tokenizer* tokenizer, int at_start, char* error, size_t error_size);

/* The text that a token completes, *size bytes and a 0, owned by the stream until its next call: never half a character. Null
 * where memory failed. */
P3M_API const char* p3m_stream_push(p3m_stream* stream, int64_t id, size_t* size);

/* What is left at the end: U+FFFD if a character never completed. The stream may be used again, as one that continues. */
P3M_API const char* p3m_stream_finish(p3m_stream* stream, size_t* size);

/* Frees it; null is nothing. */
P3M_API void p3m_stream_close(p3m_stream* stream);

#ifdef __cplusplus
}
#endif

#endif
