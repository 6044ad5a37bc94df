// What a test asks of a sketch that stands by itself.
#pragma once

#include <algorithm>
#include <cmath>
#include <recycled/recycled.hpp>
#include <vector>

#include "reference/attention.hpp"

namespace reference {

/// Finds the sketch's axes anew, in scratch memory that holds NaN: whatever stands there must not matter.
template <class T, class E>
void renew(recycled::KeySketch<T>& sketch, const recycled::KvView<T>& kv, const recycled::Shape& shape, E& executor) {
  recycled::Array<float> memory(shape.kv_heads * recycled::KeySketch<T>::axis_floats(shape));
  std::fill(memory.begin(), memory.end(), std::nanf(""));
  sketch.reserve(kv.length);
  sketch.renew(kv, memory.data(), executor);
}

/// The sketch's logits, [query row of KV head `g`][position before `length`], for queries of the whole layer,
/// [query head][dim], multiplied by `scale`.
template <class T>
std::vector<std::vector<float>> logits(recycled::KeySketch<T>& sketch, index_t g, const std::vector<float>& query,
                                       index_t length, const recycled::Shape& shape, float scale) {
  recycled::kernels::Workspace<recycled::simd::native> workspace;
  const index_t group = shape.group();
  workspace.reserve<T>(shape.query_heads, shape.head_dim, 1, group, shape.value_dim);
  workspace.pack_queries(query.data(), 1, shape, scale);
  const index_t stride = length + recycled::kernels::code_block;
  std::vector<std::int16_t> sums(at(group * stride));
  std::vector<float> lse(at(group));
  const auto found = sketch.scan(g, workspace.queries(g * group, group), length, 0, sums.data(), stride, lse);
  std::vector<std::vector<float>> rows(at(group));
  for (index_t r = 0; r < group; ++r) {
    for (index_t j = 0; j < length; ++j) rows[at(r)].push_back(found.at(r, j));
  }
  return rows;
}

}  // namespace reference
