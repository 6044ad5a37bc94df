// The key half of the inner loops: logits = einsum("rd,jd->rj", queries, keys), and their softmax.
//
// A key that has been loaded (and converted) is used for all query rows of a tile, a query for all its positions; the
// sums stay in registers over the whole row and are added up by one transpose at its end. Tile sizes: see simd/.
#pragma once

#include <algorithm>

#include "recycled/kernels/rows.hpp"
#include "recycled/kernels/softmax_state.hpp"
#include "recycled/simd/math.hpp"

namespace recycled::inline RECYCLED_ABI::kernels {

/// What is asked for while a tile is computed: as many rows are wanted in L2, and in L1 the next tile's keys, which
/// should be in L2 already.
template <int Positions>
struct Fetch {
  const void* rows;
  index_t stride_bytes;
  index_t row_bytes;

  /// A line of each row. (Loops, no lambdas: those that only prefetch GCC 12 takes for being without effect.)
  [[gnu::always_inline]] void ask(index_t line) const {
    for (int j = 0; j < Positions; ++j) simd::prefetch_l2(rows, j * stride_bytes + line);
  }
  /// Bytes [begin, end) of the rows, and of the keys behind those of this tile.
  template <class T>
  [[gnu::always_inline]] void ask(const Rows<T>& keys, index_t begin, index_t end) const {
    for (index_t line = begin; line < end; line += 64) {
      ask(line);
      for (int j = 0; j < Positions; ++j) {
        simd::prefetch_l1(keys.first, (Positions + j) * keys.stride_bytes() + line);
      }
    }
  }
  /// The rows' bytes from `begin` on: where they are longer than the keys.
  [[gnu::always_inline]] void ask_rest(index_t begin) const {
    for (index_t line = begin; line < row_bytes; line += 64) ask(line);
  }
};

/// logits[r][j] = reduce_add(sums[r][j]).
template <class Isa, int Tile, int Positions>
[[gnu::always_inline]] inline void store_logits(const typename Isa::vec (&sums)[Tile][Positions], float* logits) {
  // Four sums a transpose: what is behind the last is overwritten by the next tile, or is behind the block.
  simd::unroll<Tile>([&](auto r) {
    simd::unroll<(Positions + 3) / 4>([&](auto four) {
      constexpr auto at = [](int j) { return std::min(j, Positions - 1); };
      constexpr int j = 4 * four();
      Isa::store_sums(logits + r * logit_stride + j, sums[r][j], sums[r][at(j + 1)], sums[r][at(j + 2)],
                      sums[r][at(j + 3)]);
    });
  });
}

/// logits[r][j] = queries[r] . keys[j] for Tile rows and Positions positions. `scales`: see score_block.
template <class Isa, int Tile, int Positions, bool Fetches, Scalar T>
[[gnu::always_inline]] inline void score_tile(const Rows<T>& keys, const Queries& queries, const float* scales,
                                              float* logits, const Fetch<Positions>& fetch) {
  const T* const first = keys.first;
  const index_t stride = keys.stride;
  const index_t dim = keys.dim;
  typename Isa::vec sums[Tile][Positions];
  simd::unroll<Tile>([&](auto r) { simd::unroll<Positions>([&](auto j) { sums[r][j] = Isa::zero(); }); });
  const auto add = [&](index_t d, const auto& load_key) __attribute__((always_inline)) {
    add_products<Isa>(
        sums, [&](auto r) __attribute__((always_inline)) { return Isa::load(queries.first + r * queries.stride + d); },
        load_key);
  };
  const auto add_whole = [&](index_t d) __attribute__((always_inline)) {
    add(
        d, [&](auto j) __attribute__((always_inline)) {
          const auto key = simd::load_unscaled<Isa>(first + j * stride, d);
          if constexpr (std::is_same_v<T, q8_0>) {
            return Isa::mul(key, Isa::broadcast(scales[d / q8_0::block * block + j]));
          } else {
            return key;
          }
        });
  };
  index_t d = 0;
  for (; d + row_chunk <= dim; d += row_chunk) {
    if constexpr (Fetches) fetch.ask(keys, row_bytes<T>(d), row_bytes<T>(d + row_chunk));
    simd::unroll<row_chunk / Isa::width>([&](auto v) { add_whole(d + v * Isa::width); });
  }
  if (d < dim) {
    for (; d + Isa::width <= dim; d += Isa::width) add_whole(d);
    if (d < dim) add(d, [&](auto j) { return simd::load_first<Isa>(first + j * stride, d, dim - d); });
  }
  if constexpr (Fetches) fetch.ask_rest(row_bytes<T>(d));
  store_logits<Isa>(sums, logits);
}

/// logits[r][j] for the rows of a tile and the first `count` <= block keys. `Fetches`: whether these are the first rows
/// to read the keys, so that memory has to be kept busy, by `wanted`'s rows of the same positions.
template <class Isa, int Tile, bool Fetches, Scalar T>
void score_rows(const Rows<T>& keys, const Rows<T>& wanted, index_t count, const Queries& queries, const float* scales,
                float* logits) {
  constexpr int positions = Isa::score_positions(Tile);
  static_assert(block % positions == 0);
  const auto score = [&](auto n, index_t j) __attribute__((always_inline)) {
    const Fetch<n()> fetch{wanted[j], wanted.stride_bytes(), wanted.bytes()};
    score_tile<Isa, Tile, n(), Fetches>(keys.from(j), queries, scales + j, logits + j, fetch);
  };
  index_t j = 0;
  for (; j + positions <= count; j += positions) score(std::integral_constant<int, positions>{}, j);
  for (; j < count; ++j) score(std::integral_constant<int, 1>{}, j);
}

/// logits[r][j] for all rows and the first `count` <= block keys; the first rows fetch the values. Of q8_0 keys the
/// scales are gathered before, [head_dim / 32, block], for all rows: 17 ns a position of group 4 and 128 values in
/// place of 19.
template <class Isa, Scalar T>
void score_block(const Rows<T>& keys, const Rows<T>& values, index_t count, const Queries& queries, float* scales,
                 float* logits) {
  if constexpr (std::is_same_v<T, q8_0>) {
    for (index_t i = 0; i < keys.dim / q8_0::block; ++i) gather_scales<Isa>(keys, count, i, scales + i * block);
  }
  for_row_tiles<Isa::most_score_rows>(queries.rows, [&](auto tile, index_t r) {
    const Queries rows{queries.first + r * queries.stride, queries.stride, tile()};
    float* const tile_logits = logits + r * logit_stride;
    if (r == 0) return score_rows<Isa, tile(), true>(keys, values, count, rows, scales, tile_logits);
    score_rows<Isa, tile(), false>(keys, values, count, rows, scales, tile_logits);
  });
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
