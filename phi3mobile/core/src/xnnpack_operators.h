// The few entry points of XNNPACK's operator API that an expert needs. ExecuTorch's wheel exports them and ships no header, so
// they stand here as its library has them (read there from 1.5; packed_log.h pins the version). tests/core/test_experts.py
// compares results with torch, so another signature can't pass unnoticed.
#pragma once

#include <cstddef>
#include <cstdint>

struct pthreadpool;

extern "C" {
typedef struct xnn_operator* xnn_operator_t;

struct xnn_quantization_params {
  int32_t zero_point;
  float scale;
};

// Where packed weights live: XNNPACK asks for space when it packs, and for the address whenever an operator is reshaped.
struct xnn_weights_cache_provider {
  void* context;
  size_t (*look_up)(void* context, const void* key);
  void* (*reserve_space)(void* context, size_t size);
  size_t (*look_up_or_insert)(void* context, const void* key, void* packed, size_t size);
  bool (*is_finalized)(void* context);
  void* (*offset_to_addr)(void* context, size_t offset);
  int (*delete_cache)(void* context);
};

int xnn_initialize(const void* allocator);
int xnn_create_fully_connected_nc_qd8_f32_qb4w(size_t inputs, size_t outputs, size_t input_stride, size_t output_stride,
    size_t block, uint8_t zero, const uint16_t* scales, const void* codes, const float* bias, float least, float most,
    uint32_t flags, xnn_weights_cache_provider* weights, xnn_operator_t* made);
int xnn_reshape_fully_connected_nc_qd8_f32_qb4w(xnn_operator_t op, size_t rows, size_t* workspace, pthreadpool* threads);
int xnn_setup_fully_connected_nc_qd8_f32_qb4w(
    xnn_operator_t op, const int8_t* input, float* output, void* workspace, const xnn_quantization_params* params);
int xnn_create_convert_nc_f32_qd8(uint32_t flags, xnn_operator_t* made);
int xnn_reshape_convert_nc_f32_qd8(
    xnn_operator_t op, size_t rows, size_t columns, size_t input_stride, size_t output_stride, pthreadpool* threads);
int xnn_setup_convert_nc_f32_qd8(
    xnn_operator_t op, const float* input, int8_t* output, float* row_sums, xnn_quantization_params* params);
int xnn_run_operator(xnn_operator_t op, pthreadpool* threads);
int xnn_delete_operator(xnn_operator_t op);
}

namespace executorch::extension::threadpool { pthreadpool* get_pthreadpool(); }
