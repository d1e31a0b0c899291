// Which instruction set's loops attention uses.
#pragma once

#include "attention.h"

namespace phi3mobile {

const Loops& loops();  // in use
// Picks the loops of one instruction set, null: the machine's best, as at start. False: the machine lacks it.
bool use_isa(const char* isa);
// The set in use: "avx512", "avx2", "neon" (arm64's baseline) or "baseline".
const char* used_isa();

}  // namespace phi3mobile
