/* Text in, text out, without Python: bundles, and sessions that answer over them. phi3mobile.h runs programs, phi3mobile_text.h
 * makes ids of texts; this is what an app needs.
 *
 * Texts are UTF-8. Calls that fail write one line into `error` (may be null; error_size bytes with the end's 0): what was
 * given, what is allowed, what to do. No call throws. A handle is used by one thread at a time, but for p3m_session_cancel;
 * several handles may be used at once. A null handle is an error, not a crash. Closing null does nothing. */
#ifndef PHI3MOBILE_SESSION_H
#define PHI3MOBILE_SESSION_H

#include "phi3mobile.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Version of these headers: the library's p3m_api_version() must be the same. */
#define P3M_API_VERSION 1
P3M_API int p3m_api_version(void);

typedef struct p3m_bundle p3m_bundle;
typedef struct p3m_session p3m_session;

/* Opens a bundle's folder: manifest checked, every file there with its size. Null: see error. */
P3M_API p3m_bundle* p3m_bundle_open(const char* folder, char* error, size_t error_size);

/* The manifest as one line of JSON, in the form of format 2; the bundle's, valid until it is closed. */
P3M_API const char* p3m_bundle_manifest(const p3m_bundle* bundle);

/* Compares the SHA-256 of every file with the manifest's: seconds per gigabyte, once after a download. progress (may be null)
 * is called with bytes done and in all on the calling thread; a 0 from it ends the work. 0, or -1 and the error. */
P3M_API int p3m_bundle_verify(const p3m_bundle* bundle, int (*progress)(void* user, int64_t done, int64_t total), void* user,
    char* error, size_t error_size);

P3M_API void p3m_bundle_close(p3m_bundle* bundle);

/* Opens a session over a bundle's own program. options: null, or JSON:
 *   "threads"   size of the process's thread pool; 0 (default): every physical core
 *   "cache"     folder for packed weights of programs that XNNPACK computes, about as large as these; default: none, they
 *               are packed at every start. Weights of our recipes (host-*) are used as they lie
 *   "experts_memory"   bytes for a mixture's experts; default: what the bundle says, else all of them
 *   "num_crops" crops of a picture at most; default: the model's own number
 * Null: see error. XNNPACK's bundles take seconds the first time, while weights are packed. */
P3M_API p3m_session* p3m_session_open(const char* folder, const char* options, char* error, size_t error_size);

/* An engine of the host application: a Core ML, LiteRT or other model behind functions. */
typedef struct p3m_engine {
  int32_t version; /* P3M_API_VERSION */
  void* user;      /* given to each call */
  /* Runs count tokens at position and writes float32 [count, vocab] to logits. is_long: these rows get LongRoPE's long factors.
   * Rows from position on are overwritten, so it may go back. 0; anything else ends the answer with what was written to error.
   */
  int (*forward)(void* user, const int64_t* tokens, int64_t count, int64_t position, int is_long, float* logits, char* error,
      size_t error_size);
  void (*reset)(void* user); /* forget the sequence; may be null */
  void (*close)(void* user); /* called once, when the session closes; may be null */
} p3m_engine;

/* Opens a session over a bundle's manifest and tokenizer with this engine, which is copied. Its close is also called when this
 * fails. Null: see error. */
P3M_API p3m_session* p3m_session_open_with(const char* folder, const p3m_engine* engine, char* error, size_t error_size);

/* What such an engine has for pictures; the functions get the engine's `user`, fail as its forward does, and may not be null.
 * Sizes are in the manifest's section "vision". */
typedef struct p3m_tower {
  int32_t num_crops; /* of a picture at most; 0: the model's own number */
  /* As the engine's forward, of rows float32 [count, hidden] in the place of embedded tokens. */
  int (*forward_rows)(void* user, const float* rows, int64_t count, int64_t position, int is_long, float* logits, char* error,
      size_t error_size);
  /* Patches float32 [576, width] of a view float32 [3, 336, 336]. */
  int (*encode)(void* user, const float* view, float* patches, char* error, size_t error_size);
  /* Embeddings float32 [count, hidden] of rows float32 [count, 4 * width], count at most the manifest's "rows". */
  int (*project)(void* user, const float* rows, int64_t count, float* embedded, char* error, size_t error_size);
} p3m_tower;

/* p3m_session_open_with for a bundle that sees pictures; the tower is copied, too. Without one pictures are refused. */
P3M_API p3m_session* p3m_session_open_seeing(
    const char* folder, const p3m_engine* engine, const p3m_tower* tower, char* error, size_t error_size);

/* Takes a picture for the messages of this session: 8-bit pixels in rows, red first, of 3 bytes (RGB) or 4 (RGBA, alpha not
 * multiplied in; it lies over white). Decoding files is the platform's. stride: bytes from row to row; 0: no gaps. orientation:
 * EXIF's number, 1 (as it lies) to 8: BitmapFactory and CGImageSource do not apply it. The pixels are copied, resized; nothing
 * is computed yet. Gives the number that stands for it in "messages": equal pixels have the same. -1: see error. */
P3M_API int64_t p3m_session_picture(p3m_session* session, const uint8_t* pixels, int64_t width, int64_t height, int64_t stride,
    int channels, int orientation, char* error, size_t error_size);

/* Keeps what is seen of pictures from now on in a folder, too, made when the first is kept: later sessions, also in Python
 * (Session(features=...)), read it instead of looking again. One file a picture, tens of megabytes at most; nobody removes
 * them. A file that is cut short or of another form is written anew. runtime: what computes a tower of the host's, a text in
 * the files' names, since others compute other bits; the library's own is known, there it is ignored. 0, or -1 and the error: a
 * session that sees no pictures, a folder that is a file. A folder that can't be written ends an answer by an error. */
P3M_API int p3m_session_keep_features(
    p3m_session* session, const char* folder, const char* runtime, char* error, size_t error_size);

/* Begins an answer; one that runs is ended. request, JSON:
 *   "messages"  [{"role": "system" | "user" | "assistant", "content": text}], the last one the user's.
 *               A content may also be a list of {"type": "text", "text"} and {"type": "image", "image": a number that
 *               p3m_session_picture gave}. Where a message's texts hold <|image_1|>, <|image_2|>, ... these say where its
 *               images go (numbers count through the conversation, from 1 without a gap); else each goes where it stands
 *               in the list; or
 *   "prompt"    a text that is continued as it is
 *   "max_tokens"   512; null: no limit
 *   "stop"      [texts that end the answer]
 *   "overflow"  "stop", or "slide": when the context is full keep the system message, drop the oldest turns, go on
 *   "lookup"    false; true: draft by quoting prompt and answer: same text, faster where it quotes
 *   "repetition"   false: an answer that repeats itself is ended; true: it may
 *   "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed"   default the bundle's, else greedy
 *   "tools"     [{"name", "description", "parameters": a JSON schema}]: functions that the answer may ask for
 *   "schema"    a JSON schema, an object or its text: the answer is valid under it; "additional_properties" false: objects that
 *               declare names have no others where the schema does not say; true: they may
 *   "regex"     a pattern (Rust's syntax, no lookaround) that the whole answer matches
 *   "grammar"   a Lark grammar (llguidance's dialect) with a rule start
 * At most one of the last three, and not with tools; such an answer is greedy where nobody says, and whole within max_tokens
 * and the context: where these come near it is closed as shortly as it can be, and ends as "length". They need llguidance's
 * library (p3m_guidance); without it they are refused, and the arguments of a tool's call may break its schema. What a function
 * gave is a message {"role": "tool", "name", "content"}, and may stay there without tools: it is told as the user's. Computes
 * nothing but ids. 0, or -1 and the error; then what ran goes on. */
P3M_API int p3m_session_start(p3m_session* session, const char* request, char* error, size_t error_size);

/* Finds llguidance, which constrained output is made by: its name and version, valid for good. path: null for the default, the
 * file libllguidance.so (macOS: .dylib) beside this library, then by the loader's rules; or a file, before it is first used; or
 * "": none, until the next call. Null: there is none, see error. For the whole process; from any thread. */
P3M_API const char* p3m_guidance(const char* path, char* error, size_t error_size);

enum p3m_event {
  P3M_EVENT_ERROR = -1,   /* the answer ended by an error: the text is its line */
  P3M_EVENT_DONE = 0,     /* the answer ended: statistics as JSON; again with every further call */
  P3M_EVENT_TEXT = 1,     /* a piece of the answer, whole characters */
  P3M_EVENT_NOTE = 2,     /* JSON {"kind", "message"}: "long_switch", "window", "kv_back", "repetition", "picture", "closed" */
  P3M_EVENT_PROGRESS = 3, /* JSON {"done", "total"}: tokens of a prefill that takes several forwards */
  P3M_EVENT_TOOL_CALL = 4 /* JSON {"name", "arguments"}: the answer asks for a function; such an answer has no text */
};

/* Works until there is something to show: one forward at most for each token. text (may be null) and size (may be null) are the
 * session's, valid until the next call. Statistics: finish_reason (stop, tool_calls, stop_string, length, context_full,
 * repetition, cancelled, error), counts of tokens, times in seconds and milliseconds, as phi3mobile.Statistics names them;
 * engine_s is the part in forwards. */
P3M_API int p3m_session_next(p3m_session* session, const char** text, size_t* size);

/* Ends the running answer within one token or one chunk of prefill; its text so far stands. From any thread. */
P3M_API void p3m_session_cancel(p3m_session* session);

/* Ends the answer and forgets the KV cache. */
P3M_API void p3m_session_reset(p3m_session* session);

/* Writes the KV cache with its tokens to a file, whole or not at all: a later session over the same bundle and runtime goes on
 * from it without prefilling. Pages never used take no space. Gives the file's bytes; -1: see error (an engine of the host's
 * can't). */
P3M_API int64_t p3m_session_save(p3m_session* session, const char* path, char* error, size_t error_size);

/* Reads what p3m_session_save wrote; gives how many tokens it holds. -1: another bundle or runtime, a damaged file; then the
 * cache is empty. */
P3M_API int64_t p3m_session_restore(p3m_session* session, const char* path, char* error, size_t error_size);

P3M_API void p3m_session_close(p3m_session* session);

/* What the two calls above do, for whoever holds a model: planned memory to and from a file with `about`, a text kept with it.
 */
P3M_API int64_t p3m_save_state(p3m_model* model, const char* path, const char* about, char* error, size_t error_size);
P3M_API int p3m_load_state(p3m_model* model, const char* path, char* error, size_t error_size);
/* The text kept in a state's file, up to capacity bytes with the end's 0; gives its length. -1: see error. */
P3M_API int64_t p3m_state_about(const char* path, char* about, size_t capacity, char* error, size_t error_size);

#ifdef __cplusplus
}
#endif

#endif
