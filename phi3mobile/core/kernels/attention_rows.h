// Products of query rows with a block of keys and with its values, the softmax between them, for rows of floats and of int8.
// Included by attention_loops.cpp, inside its namespace: compiled once per instruction set.

// scores[r][key] = q[r] . keys[key] for R rows; rows of scores are kBlock apart.
template <int R, class T>
static void dots(const float* const* q, const T* keys, int64_t count, int64_t width, int64_t ahead, float* scores) {
  for (int64_t key = 0; key < count; key += 4) {
    const T* k[4];
    ask(keys + key * width, 4 * width, ahead);
    for (int i = 0; i < 4; ++i) k[i] = keys + (key + i < count ? key + i : count - 1) * width;
    Floats sums[R][4] = {};
    for (int64_t d = 0; d < width; d += kLoad * W) {
      Floats x[4][kLoad];
      for (int i = 0; i < 4; ++i) load_row<kLoad>(k[i] + d, x[i]);
      for (int n = 0; n < kLoad; ++n) {
        for (int r = 0; r < R; ++r) {
          const Floats y = load(q[r] + d + n * W);
          for (int i = 0; i < 4; ++i) sums[r][i] += x[i][n] * y;
        }
      }
    }
    for (int r = 0; r < R; ++r) store_totals(sums[r], scores + r * kBlock + key);
  }
}

// sums[r][d..] += weights[r][key] * values[key][d..] for R rows and N vectors from d on.
template <int R, int N, class T>
P3M_INLINE void weigh(const float* weights, const T* values, int64_t count, int64_t width, int64_t ahead, float* sums) {
  Floats y[R][N];
  for (int r = 0; r < R; ++r) load_row<N>(sums + r * width, y[r]);
  for (int64_t key = 0; key < count; ++key) {
    Floats x[N];
    ask(values + key * width, N * W, ahead);
    load_row<N>(values + key * width, x);
    for (int r = 0; r < R; ++r) {
      for (int n = 0; n < N; ++n) y[r][n] += x[n] * weights[r * kBlock + key];
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int n = 0; n < N; ++n) store(sums + r * width + n * W, y[r][n]);
  }
}

template <int R, class T>
static void weigh_rows(const float* weights, const T* values, int64_t count, int64_t width, int64_t ahead, float* sums) {
  int64_t d = 0;
  for (; d + 4 * W <= width; d += 4 * W) weigh<R, 4>(weights, values + d, count, width, ahead, sums + d);
#if P3M_LANES > 4
  for (; d + 2 * W <= width; d += 2 * W) weigh<R, 2>(weights, values + d, count, width, ahead, sums + d);
  for (; d < width; d += W) weigh<R, 1>(weights, values + d, count, width, ahead, sums + d);
#endif
}

template <class T>
static void all_dots(
    const float* const* q, int64_t rows, const T* keys, int64_t count, int64_t width, int64_t ahead, float* scores) {
  for (int64_t r = 0; r < rows; r += P3M_ROWS) {
    float* to = scores + r * kBlock;
    switch (rows - r) {
      case 1:
        dots<1>(q + r, keys, count, width, ahead, to);
        break;
#if P3M_ROWS > 2
      case 2:
        dots<2>(q + r, keys, count, width, ahead, to);
        break;
      case 3:
        dots<3>(q + r, keys, count, width, ahead, to);
        break;
#endif
      default:
        dots<P3M_ROWS>(q + r, keys, count, width, ahead, to);
    }
  }
}

template <class T>
static void all_weigh(
    const float* weights, int64_t rows, const T* values, int64_t count, int64_t width, int64_t ahead, float* sums) {
  for (int64_t r = 0; r < rows; r += P3M_ROWS) {
    const float* from = weights + r * kBlock;
    float* to = sums + r * width;
    switch (rows - r) {
      case 1:
        weigh_rows<1>(from, values, count, width, ahead, to);
        break;
#if P3M_ROWS > 2
      case 2:
        weigh_rows<2>(from, values, count, width, ahead, to);
        break;
      case 3:
        weigh_rows<3>(from, values, count, width, ahead, to);
        break;
#endif
      default:
        weigh_rows<P3M_ROWS>(from, values, count, width, ahead, to);
    }
  }
}

// Online softmax of one row over one block: scores[first, end) become weights, the others 0. sums are rescaled to the new peak.
static void soften(float* scores, int64_t first, int64_t end, float scale, const float* k_scale, const float* v_scale,
    int64_t width, float* sums, float* peak, float* total) {
  if (first >= end) {
    memset(scores, 0, kBlock * sizeof(float));
    return;
  }
  for (int64_t j = 0; j < kBlock; j += W) store(scores + j, load(scores + j) * load(k_scale + j) * scale);
  for (int64_t j = 0; j < first; ++j) scores[j] = -INFINITY;
  for (int64_t j = end; j < kBlock; ++j) scores[j] = -INFINITY;
  Floats most = load(scores);
  for (int64_t j = W; j < kBlock; j += W) most = larger(load(scores + j), most);
  const float before = *peak, now = most_of(most);
  if (now > before) {
    *peak = now;
    const float shrink = before == -INFINITY ? 0.0f : expf(before - now);
    *total *= shrink;
    for (int64_t d = 0; d < width; d += W) store(sums + d, load(sums + d) * shrink);
  }
  Floats added = {};
  for (int64_t j = 0; j < kBlock; j += W) {
    const Floats weight = exp_of(load(scores + j) - *peak);
    added += weight;
    store(scores + j, weight * load(v_scale + j));
  }
  *total += total_of(added);
}

// int8 rows are made floats once for all query rows where there are many.
static const float* widen(const int8_t* rows, int64_t count, int64_t width, float* to) {
  for (int64_t i = 0; i < count * width; i += kLoad * W) {
    Floats x[kLoad];
    load_row<kLoad>(rows + i, x);
    for (int n = 0; n < kLoad; ++n) store(to + i + n * W, x[n]);
  }
  return to;
}

static const float* widen(const float* rows, int64_t, int64_t, float*) { return rows; }
