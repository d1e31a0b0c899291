// A file of experts as it lies on disk.
//
// Layout, little-endian: a header of 64 bytes, two checksums (w13, w2) for each record, padding to kAlign; then one record for
// each layer and expert, [w13][w2], each part at a multiple of kAlign. In a bundle ("plain") a part is its codes, two to a byte
// as in models/quantized.py, then its bfloat16 scales; in the cache ("packed") it is what XNNPACK makes of that on this
// machine.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace phi3mobile {

constexpr uint64_t kAlign = 16384;  // pages of every phone, and what direct reads ask for

struct ExpertHeader {
  char magic[4];  // "P3ME"
  uint32_t version, layers, experts, hidden, inner, group13, group2, reserved[2];
  uint64_t bytes13, bytes2;  // of the parts, without padding
  uint64_t check;            // of this header (with 0 here) and the checksums behind it
};
static_assert(sizeof(ExpertHeader) == 64);

uint64_t padded(uint64_t size);  // to the next multiple of kAlign
// All of it, or false.
bool read_all(int file, void* to, uint64_t size, uint64_t at);
// Header, checksums and size of a file; its data are not read. Empty, or one line.
std::string read_header(const std::string& path, int file, ExpertHeader* header, std::vector<uint64_t>* sums);

// Sum of 64-bit words, each times an odd number by its place; a last short word is padded with zeros.
uint64_t checksum(const void* bytes, uint64_t size);

}  // namespace phi3mobile
