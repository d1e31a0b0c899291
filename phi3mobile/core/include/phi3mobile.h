/* Runs an exported decoder without Python or torch: method forward(tokens int64[1,T], input_pos int64[1]) -> float32[1,T,V],
 * or, of a model that sees pictures, token_embedding(tokens) -> float32[1,T,hidden] and text_decoder(rows, input_pos); and the
 * tower for these, another program: encode(view float32[1,3,336,336]) and project(rows float32[T,width]).
 * A model is used by one thread at a time; several models may be open. The thread pool is one for the whole process. */
#ifndef PHI3MOBILE_H
#define PHI3MOBILE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define P3M_API __attribute__((visibility("default")))

typedef struct p3m_model p3m_model;

/* Where XNNPACK's packed weights are; NONE: the program's weights are used as they lie in its file. */
enum p3m_packed { P3M_PACKED_HEAP = 0, P3M_PACKED_CREATED = 1, P3M_PACKED_REUSED = 2, P3M_PACKED_NONE = 3 };

/* Opens pte_path memory-mapped. packed_cache_path: file for the packed weights, or null; its folder must exist; at most 255
 * bytes. threads: see p3m_set_threads. On failure null and one line in error. */
P3M_API p3m_model* p3m_open(const char* pte_path, const char* packed_cache_path, int threads, char* error, size_t error_size);

/* Runs count tokens at position; writes float32 [count, vocab] to logits unless it is null. 0, or an ExecuTorch error code. */
P3M_API int p3m_forward(p3m_model* model, const int64_t* tokens, int64_t count, int64_t position, float* logits);

/* The same of rows float32 [count, hidden] in the place of embedded tokens: a picture's. Error where the program takes none. */
P3M_API int p3m_forward_embeddings(
    p3m_model* model, const float* rows, int64_t count, int64_t hidden, int64_t position, float* logits);

/* As these, but the logits, of p3m_logits, are float32 [1, vocab], of the last token alone: a program that can leaves out the
 * others' head, and their last MLP. */
P3M_API int p3m_prefill(p3m_model* model, const int64_t* tokens, int64_t count, int64_t position);
P3M_API int p3m_prefill_embeddings(p3m_model* model, const float* rows, int64_t count, int64_t hidden, int64_t position);

/* Embeds count tokens of such a program: writes float32 [count, hidden] to rows. 0, or an ExecuTorch error code. */
P3M_API int p3m_embed(p3m_model* model, const int64_t* tokens, int64_t count, float* rows);

/* Runs a method that makes one float32 tensor of one, such as a tower's: how many values it has, of which up to capacity are
 * written to output; -1: see p3m_error. */
P3M_API int64_t p3m_compute(
    p3m_model* model, const char* method, const float* input, const int64_t* sizes, int dims, float* output, int64_t capacity);

/* The last forward's logits, float32 [count, vocab]: valid until the next call. */
P3M_API const float* p3m_logits(const p3m_model* model, int64_t* count, int64_t* vocab);

/* Integers a metadata method gives (get_max_seq_len, get_eos_ids, ...): how many there are, of which up to capacity are
 * stored; -1: no such method. */
P3M_API int64_t p3m_metadata(p3m_model* model, const char* name, int64_t* values, int64_t capacity);

/* What the last failed call on this model said, one line. */
P3M_API const char* p3m_error(const p3m_model* model);

P3M_API int p3m_packed_state(const p3m_model* model);

/* Why the packed weights are on the heap; empty otherwise. */
P3M_API const char* p3m_packed_reason(const p3m_model* model);

P3M_API int p3m_threads(void);

/* Size of the pool; 0: one thread for each physical core we may use, or as it is while models are open. Gives 0, or -1 if
 * open models hold a pool of another size. */
P3M_API int p3m_set_threads(int threads);

/* Instruction set of our kernels: "avx512", "avx2" or "baseline"; null: the machine's best, as at start. For tests and
 * measurements. 0, or -1 if the machine lacks it. */
P3M_API int p3m_use_isa(const char* isa);

/* Instruction set that our kernels use now: "avx512", "avx2", "neon" (arm64's baseline) or "baseline". */
P3M_API const char* p3m_isa(void);

/* For exports: float32 weight [rows, width] to 4 bit in groups of so many columns, on the scale with the least squared error,
 * weighted by importance [width] unless null. From each of count divisors of a group's extreme one least-squares step is tried.
 * either_sign: a scale is negative where the extreme is positive, so that it gets one of 8 codes; 0: all are positive.
 * scales: bfloat16 [rows, width / group]; codes: uint8 [rows, width / 2], code + 8, even columns low, or null. 0; -1: sizes
 * that don't fit together; -2: a weight is not finite. */
P3M_API int p3m_round_groups(const float* weight, const float* importance, int64_t rows, int64_t width, int group,
    int either_sign, const float* divisors, int count, uint16_t* scales, uint8_t* codes);

/* Whether the runtime in this process has a kernel for an operator, named as in a program: "aten::add.out". 1 or 0. */
P3M_API int p3m_has_operator(const char* name);

/* Version of the ExecuTorch runtime this library was built for. */
P3M_API const char* p3m_runtime_version(void);

/* Gives the model a bundle's file of experts. memory: bytes for them; 0, or enough for all: the file is mapped, else they are
 * read into that much when they are needed. used: experts of a token. 0, or -1 and one line in error. */
P3M_API int p3m_open_experts(p3m_model* model, const char* path, uint64_t memory, int used, char* error, size_t error_size);

/* Of the experts since they were opened: found in memory, read, bytes read, microseconds waited for reads, slots, whether the
 * file is mapped, bytes of all experts, bytes of one. Gives how many there are, of which up to capacity are stored; 0: no
 * experts. */
P3M_API int64_t p3m_expert_statistics(const p3m_model* model, int64_t* values, int64_t capacity);

P3M_API void p3m_close(p3m_model* model);

#ifdef __cplusplus
}
#endif

#endif
