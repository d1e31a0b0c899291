// Cuts a call's attention into parts and shares them among the threads. Decode, one token, waits for the threads once: the few
// new cache rows are written before, each part rotates its own queries.
#include "attention_work.h"
#include "attention_isa.h"
#include "share.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <new>

namespace phi3mobile {
namespace {

constexpr int64_t kWorthThreads = 1 << 15;  // multiply-adds below which threads, awake from the layer before, save nothing
constexpr int64_t kSplitKeys = 256;         // fewest keys for which splitting a row pays for the merge
constexpr int64_t kPartsPerThread = 4;      // enough that unequal cores finish together

// How the rows of a call are cut: tiles of rows of every KV head, the longest first where causality makes them unequal.
struct Plan {
  int64_t tiles, tile_rows;
  int64_t keys;                                 // that the last row sees, about
  int64_t tile_tokens, tile_heads, first_tile;  // sparse: tiles end with a query block and are counted from position 0

  explicit Plan(const Attention& a) {
    const int64_t group = a.heads / a.kv_heads, end = a.position + a.count;
    if (a.block == 0) {
      tile_rows = std::min(a.count * group, kTileRows);
      tiles = (a.count * group + kTileRows - 1) / kTileRows;
      keys = a.window > 0 ? std::min(a.window + a.count - 1, end) : end;
      return;
    }
    tile_heads = std::min(group, kSparseRows);
    tile_tokens = std::min(a.block, kSparseRows / tile_heads);
    tile_rows = std::min(a.count, tile_tokens) * tile_heads;
    first_tile = tile_at(a, a.position);
    tiles = (tile_at(a, end - 1) - first_tile + 1) * head_tiles(a);
    keys = std::min(end, seen_from(a, (end - 1) / a.block, 0, 1).count * a.block);
  }

  int64_t head_tiles(const Attention& a) const { return (a.heads / a.kv_heads + tile_heads - 1) / tile_heads; }
  int64_t tiles_per_block(const Attention& a) const { return (a.block + tile_tokens - 1) / tile_tokens; }
  int64_t tile_at(const Attention& a, int64_t position) const {
    return position / a.block * tiles_per_block(a) + position % a.block / tile_tokens;
  }

  // The rows of tile number `tile`, from the last to the first, and piece `split` of `splits` of their keys.
  void lay(const Attention& a, int64_t tile, int64_t split, int64_t splits, Part* part) const {
    const int64_t group = a.heads / a.kv_heads;
    if (a.block == 0) {
      part->first_row = (tiles - 1 - tile) * kTileRows;
      part->rows = std::min(kTileRows, a.count * group - part->first_row);
      const int64_t first = a.window > 0 ? std::max<int64_t>(0, a.position + part->first_row / group + 1 - a.window) : 0;
      const int64_t last = a.position + (part->first_row + part->rows - 1) / group;
      const int64_t share = ((last + 1 - first + splits - 1) / splits + kBlock - 1) / kBlock * kBlock;
      part->first_key = first + split * share;
      part->end_key = std::min(last + 1, part->first_key + share);
      return;
    }
    const int64_t at = first_tile + (tiles - 1 - tile) / head_tiles(a), query_block = at / tiles_per_block(a);
    const int64_t start = query_block * a.block + at % tiles_per_block(a) * tile_tokens;
    const int64_t end = std::min({start + tile_tokens, (query_block + 1) * a.block, a.position + a.count});
    part->first_token = std::max(start, a.position) - a.position;
    part->tokens = end - a.position - part->first_token;
    part->first_head = (tiles - 1 - tile) % head_tiles(a) * tile_heads;
    const int64_t heads = std::min(tile_heads, group - part->first_head);
    part->rows = part->tokens * heads;
    const int64_t blocks = seen_from(a, query_block, part->kv_head * group + part->first_head, heads).count;
    part->first_key = blocks * split / splits;
    part->end_key = blocks * (split + 1) / splits;
  }
};

// Every tile of every KV head, its keys split where there would be too few parts for the threads. A free thread takes the next
// part. False: no memory.
bool attend_all(const Attention& a) {
  const Plan plan(a);
  const int64_t work_size = a.count * a.heads * plan.keys * a.width;
  const int64_t threads = work_size < kWorthThreads ? 1 : executorch::extension::get_thread_count();
  const int64_t wholes = plan.tiles * a.kv_heads;
  const int64_t wanted = threads > 1 ? (kPartsPerThread * threads + wholes - 1) / wholes : 1;
  const int64_t splits = std::max<int64_t>(1, std::min(wanted, plan.keys / kSplitKeys));
  const int64_t jobs = wholes * splits;

  const int64_t kept = splits > 1 ? jobs : threads;  // results in memory at once
  const int64_t part_size = part_floats(plan.tile_rows, a.width), scratch_size = scratch_floats(plan.tile_rows, a.width);
  std::unique_ptr<float[]> memory(new (std::nothrow) float[kept * part_size + threads * scratch_size]);
  std::unique_ptr<Part[]> parts(new (std::nothrow) Part[kept]);
  if (!memory || !parts) return false;

  std::atomic<int64_t> next{0};
  const auto work = [&](int64_t first_worker, int64_t end_worker) {
    for (int64_t worker = first_worker; worker < end_worker; ++worker) {
      float* scratch = memory.get() + kept * part_size + worker * scratch_size;
      for (int64_t job = next++; job < jobs; job = next++) {
        const int64_t slot = splits > 1 ? job : worker, whole = job / splits;
        Part& part = parts[slot];
        part.kv_head = whole % a.kv_heads;
        plan.lay(a, whole / a.kv_heads, job % splits, splits, &part);
        part.sums = memory.get() + slot * part_size;
        part.peaks = part.sums + plan.tile_rows * a.width;
        part.totals = part.peaks + plan.tile_rows;
        loops().attend(a, part, scratch);
        if (splits == 1) loops().finish(a, &part, 1);
      }
    }
  };
  if (!share(threads, 1, work)) return false;
  if (splits > 1) {
    for (int64_t whole = 0; whole < wholes; ++whole) loops().finish(a, &parts[whole * splits], splits);
  }
  return true;
}

// The first position whose int8 row the ring still has, before tokens are written from a.position on.
int64_t ring_start(const Attention& a) {
  return std::clamp<int64_t>(std::max(a.coarse.mark[0], std::max<int64_t>(a.coarse.mark[1], 0) - kRing), 0, a.position);
}

}  // namespace

bool attend_tokens(Attention a) {
  const int64_t end = a.position + a.count, columns = (a.heads + 2 * a.kv_heads) * a.width;
  while (a.position < end) {
    a.count = end - a.position;
    if (a.ring) {
      const int64_t oldest = std::max<int64_t>(0, a.position / a.block - a.local_blocks + 1);
      a.count = std::min(a.count, (oldest + reach_of(a)) * a.block - a.position);
    }
    if (a.coarse.keys) {
      a.count = std::min(a.count, kRing - kRecent);
      a.coarse.ring_from = ring_start(a);
      a.coarse.mark[0] = a.coarse.ring_from, a.coarse.mark[1] = a.position + a.count;
    }
    const auto write = [&](int64_t first, int64_t last) { loops().write(a, first, last); };
    if (!share(a.count, 1 + kWorthThreads / (2 * a.kv_heads * a.width), write) || !attend_all(a)) return false;
    a.qkv += a.count * columns, a.cos += a.count * a.half, a.sin += a.count * a.half;
    a.out += a.count * a.heads * a.width;
    a.position += a.count;
  }
  return true;
}

}  // namespace phi3mobile
