#pragma once

#include <cstddef>
#include <vector>

/// A sequence for one layer of 8 query and 2 KV heads of 40 values each: queries [tokens, 8, 40], keys and
/// values [tokens, 2, 40].
struct Sequence {
  static constexpr std::size_t query_heads = 8, kv_heads = 2, head_dim = 40;
  static constexpr std::size_t prompt = 200, steps = 60;
  std::vector<float> queries, keys, values;
};

// The parts: each decodes the sequence and returns the outputs [tokens, 8, 40].
#define X(part) std::vector<float> part(const Sequence& sequence);
MIXED_LINK_PARTS
#undef X
