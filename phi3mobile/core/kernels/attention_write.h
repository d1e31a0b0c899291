// New rows into the cache: rotated, rounded, in the cache's form.
// Included by attention_loops.cpp, inside its namespace: compiled once per instruction set.

// One head, rotated by its token's angles in NeoX halves: (x[i], x[i + half]) for i < half; the rest passes through.
// Products are rounded before they are added, as in the eager reference: a fused multiply-add could turn one int8 step.
P3M_UNFUSED static void rotate(const float* x, const float* cos, const float* sin, int64_t half, int64_t width, float* to) {
  for (int64_t i = 0; i < half; ++i) {
    const float a = x[i] * cos[i], b = x[i + half] * sin[i];
    const float c = x[i + half] * cos[i], d = x[i] * sin[i];
    to[i] = a - b;
    to[i + half] = c + d;
  }
  memcpy(to + 2 * half, x + 2 * half, (width - 2 * half) * sizeof(float));
}

static void quantize(const float* row, int64_t width, int8_t* out, float* scale) {
  Floats most = {};
  for (int64_t d = 0; d < width; d += W) {
    const Floats x = load(row + d);
    most = larger(larger(x, -x), most);
  }
  const float peak = most_of(most);
  const float inverse = peak > 0 ? 127.0f / peak : 0.0f;
  for (int64_t d = 0; d < width; ++d) {
    const float x = rintf(row[d] * inverse);
    out[d] = (int8_t)(x > 127 ? 127 : x < -127 ? -127 : x);
  }
  *scale = peak / 127.0f;
}

// A key or value turned, in both forms: as int8 in the ring's row `at`, of 4 bits in row `position` of its KV head.
static void write_both(const Attention& a, float* row, int64_t head, int64_t at, int64_t position, void* ring, float* scale,
    uint8_t* coarse, uint16_t* coarse_scale) {
  turn(row, a.width);
  quantize(row, a.width, (int8_t*)ring + at * a.width, scale + at);
  quantize(row, a.width, coarse + (head * a.coarse.capacity + position) * (a.width / 2),
      coarse_scale + head * (a.width / kGroup) * a.coarse.capacity + position, a.coarse.capacity);
}

static void write(const Attention& a, int64_t first, int64_t end) {
  float key[kMaxWidth], turned[kMaxWidth];
  for (int64_t t = first; t < end; ++t) {
    const float* row = a.qkv + (t * (a.heads + 2 * a.kv_heads) + a.heads) * a.width;
    for (int64_t head = 0; head < a.kv_heads; ++head) {
      int64_t at = a.position + t;
      if (a.ring) at = row_of(a, head, at / a.block) + at % a.block;
      at = (a.coarse.keys ? at % kRing : at) + head * a.capacity;
      const float* value = row + (a.kv_heads + head) * a.width;
      rotate(row + head * a.width, a.cos + t * a.half, a.sin + t * a.half, a.half, a.width, key);
      if (a.coarse.keys) {
        memcpy(turned, value, a.width * sizeof(float));
        write_both(a, key, head, at, a.position + t, a.k_cache, a.k_scale, a.coarse.keys, a.coarse.k_scale);
        write_both(a, turned, head, at, a.position + t, a.v_cache, a.v_scale, a.coarse.values, a.coarse.v_scale);
      } else if (a.k_scale) {
        quantize(key, a.width, (int8_t*)a.k_cache + at * a.width, a.k_scale + at);
        quantize(value, a.width, (int8_t*)a.v_cache + at * a.width, a.v_scale + at);
      } else {
        memcpy((float*)a.k_cache + at * a.width, key, a.width * sizeof(float));
        memcpy((float*)a.v_cache + at * a.width, value, a.width * sizeof(float));
      }
    }
  }
}
