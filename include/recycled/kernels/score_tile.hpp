// The key half of the inner loops: logits = einsum("rd,jd->rj", queries, keys), and their softmax.
//
// A key vector that has been loaded (and converted) is used for `score_rows` query rows, a query vector for 4
// positions; their 4 x score_rows sums stay in registers over the whole row and are added up by one transpose at its
// end.
#pragma once

#include <algorithm>

#include "recycled/kernels/rows.hpp"
#include "recycled/kernels/softmax_state.hpp"
#include "recycled/simd/math.hpp"

namespace recycled::inline RECYCLED_ABI::kernels {

/// logits[r][j] = queries[r] . keys[j] for Tile rows and 4 positions; meanwhile the 4 rows of `ahead` (if not null)
/// travel to the cache.
template <class Isa, int Tile, Scalar T>
void score_tile(const T* const (&keys)[4], index_t dim, const float* queries, index_t query_stride, float* logits,
                const T* const* ahead = nullptr) {
  typename Isa::vec sums[Tile][4];
  for (auto& row : sums) std::fill(row, row + 4, Isa::zero());
  const auto add = [&](index_t d, const auto& load_key) {
    typename Isa::vec query[Tile];
    for (int r = 0; r < Tile; ++r) query[r] = Isa::load(queries + r * query_stride + d);
    for (int j = 0; j < 4; ++j) {
      const typename Isa::vec key = load_key(keys[j]);
      for (int r = 0; r < Tile; ++r) sums[r][j] = Isa::fma(query[r], key, sums[r][j]);
    }
  };
  index_t d = 0;
  for (; d + Isa::width <= dim; d += Isa::width) {
    if (ahead != nullptr && d % values_per_line<T> == 0) {
      for (int j = 0; j < 4; ++j) simd::prefetch(ahead[j] + d / values_per_element<T>);
    }
    add(d, [d](const T* key) { return simd::load<Isa>(key, d); });
  }
  if (d < dim) add(d, [d, dim](const T* key) { return simd::load_first<Isa>(key, d, dim - d); });
  for (int r = 0; r < Tile; ++r) {
    Isa::store_sums(logits + r * block, sums[r][0], sums[r][1], sums[r][2], sums[r][3]);
  }
}

/// logits[r][j] for all rows and the `count` <= block positions from `begin` on.
template <class Isa, Scalar T>
void score_block(const Rows<T>& keys, const Rows<T>& values, index_t begin, index_t count, const Queries& queries,
                 float* logits) {
  for (index_t j = 0; j < count; j += 4) {
    const auto position = [&](index_t i) { return begin + std::min(j + i, count - 1); };
    const T* const four[4] = {keys[position(0)], keys[position(1)], keys[position(2)], keys[position(3)]};
    const T* const ahead[4] = {values[position(0)], values[position(1)], values[position(2)], values[position(3)]};
    for_row_tiles<Isa::score_rows>(queries.rows, [&](auto tile, index_t r) {
      score_tile<Isa, tile()>(four, keys.dim, queries.first + r * queries.stride, queries.stride,
                              logits + r * block + j, r == 0 ? ahead : nullptr);
    });
  }
}

/// Turns a row's logits into weights relative to the new maximum; returns what all earlier sums must be multiplied by.
template <class Isa>
float soften(float* logits, index_t count, float& max, float& sum, float& sum_lost) {
  // Whole vectors: behind the last position stand logits of -inf, which weigh nothing.
  const index_t whole = simd::padded<Isa>(count);
  std::fill(logits + count, logits + whole, SoftmaxState::empty_max);
  typename Isa::vec largest = Isa::load(logits);
  for (index_t j = Isa::width; j < whole; j += Isa::width) largest = Isa::max(largest, Isa::load(logits + j));
  const float block_max = Isa::reduce_max(largest);
  const float new_max = block_max > max ? block_max : max;
  const float reference = SoftmaxState::reference(new_max);
  typename Isa::vec weights = Isa::zero();
  for (index_t j = 0; j < whole; j += Isa::width) {
    const auto weight = simd::exp<Isa>(Isa::sub(Isa::load(logits + j), Isa::broadcast(reference)));
    Isa::store(logits + j, weight);
    weights = Isa::add(weights, weight);
  }
  const float correction = std::exp(max - reference);
  // Kahan's summation, as for the output: see value_tile.hpp.
  const float before = sum * correction;
  const float added = sum_lost * correction + Isa::reduce_add(weights);
  sum = before + added;
  sum_lost = added - (sum - before);
  max = new_max;
  return correction;
}

}  // namespace recycled::inline RECYCLED_ABI::kernels
