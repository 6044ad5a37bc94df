// The value half of the inner loops: output = output * correction + einsum("rj,jv->rv", weights, values).
//
// A value that has been loaded (and converted) is used for all query rows of a tile, a weight for all its columns; the
// sums stay in registers over all positions of the block: a strip of columns at a time. Tile sizes: see simd/.
#pragma once

#include <algorithm>
#include <limits>

#include "recycled/kernels/rows.hpp"

namespace recycled::inline RECYCLED_ABI::kernels {

/// What the value pass of a block works on.
template <Scalar T>
struct ValueBlock {
  Rows<T> values;           // from the block's first position on
  index_t count;            // positions
  const float* weights;     // [rows, logit_stride]
  const float* correction;  // [rows]
  float* output;            // [rows, stride]
  float* lost;              // [rows, stride]: what rounding took from output so far
  index_t stride;
  Rows<T> ahead;  // as many rows, wanted in L2 meanwhile; none if null
};

/// total = total * correction + gain, with what the addition rounds away kept in `lost` and added the next time. (Where
/// a sum overflows, nothing is kept: infinity less infinity would make a NaN of it.)
template <class Isa>
void add_compensated(float* total, float* lost, typename Isa::vec correction, typename Isa::vec gain) {
  const auto before = Isa::mul(Isa::load(total), correction);
  const auto added = Isa::fma(Isa::load(lost), correction, gain);
  const auto after = Isa::add(before, added);
  const auto rounded_away = Isa::sub(added, Isa::sub(after, before));
  const auto magnitude = Isa::max(after, Isa::sub(Isa::zero(), after));
  Isa::store(total, after);
  Isa::store(lost, Isa::select_less(magnitude, Isa::broadcast(std::numeric_limits<float>::infinity()), rounded_away,
                                    Isa::zero()));
}

/// Rows from a value in use to the one that is asked for from L2 to L1.
inline constexpr index_t near_rows = 4;

/// Cache lines that a strip of vectors covers in whole or in part, at least one: a part of a q8_0 block has no bytes.
template <class Isa, Scalar T>
constexpr index_t strip_lines(int vectors) {
  return std::max((row_bytes<T>(index_t{vectors} * Isa::width) + 63) / 64, index_t{1});
}

/// output[r][column...] = output * correction[r] + sum_j weights[r][j] values[j][column...], for Tile rows and
/// `Vectors` vectors from `column` on. A block has sums of its own, and they join the output by Kahan's summation: the
/// error does not grow with the context. (Without it 131072 equal values are off by 135 eps.) `ahead`: where the first
/// row ahead is to be fetched, or null.
template <class Isa, int Tile, int Vectors, Scalar T>
void value_tile(const ValueBlock<T>& b, index_t column, const void* ahead) {
  typename Isa::vec sums[Tile][Vectors];
  simd::unroll<Tile>([&](auto r) { std::fill(sums[r], sums[r] + Vectors, Isa::zero()); });
  const auto add_rows = [&](const auto& load_value) __attribute__((always_inline)) {
    const T* row = b.values.first;
    const index_t near = near_rows * b.values.stride_bytes() + row_bytes<T>(column);
    for (index_t j = 0; j < b.count; ++j, row += b.values.stride) {
      if (ahead != nullptr) {
        for (index_t line = 0; line < 64 * strip_lines<Isa, T>(Vectors); line += 64) {
          simd::prefetch_l2(ahead, j * b.ahead.stride_bytes() + line);
          simd::prefetch_l1(row, near + line);
        }
      }
      add_products<Isa>(
          sums, [&](auto r) __attribute__((always_inline)) { return Isa::broadcast(b.weights[r * logit_stride + j]); },
          [&](auto v) __attribute__((always_inline)) { return load_value(row, column + v * Isa::width); });
    }
  };
  const index_t rest = b.values.dim - column;
  if (rest >= Vectors * Isa::width) {
    add_rows([](const T* row, index_t c) { return simd::load_unscaled<Isa>(row, c); });
  } else {  // the end of a row that is no whole number of vectors; Vectors is 1
    add_rows([rest](const T* row, index_t c) { return simd::load_first<Isa>(row, c, rest); });
  }
  simd::unroll<Tile>([&](auto r) {
    const auto correction = Isa::broadcast(b.correction[r]);
    simd::unroll<Vectors>([&](auto v) {
      const index_t place = r * b.stride + column + v * Isa::width;
      add_compensated<Isa>(b.output + place, b.lost + place, correction, sums[r][v]);
    });
  });
}

/// Columns [column, end), in strips of `Vectors` vectors or fewer; a strip of one is slow, so none is left over if it
/// can be helped. `fetched`: bytes of the rows ahead that earlier strips have asked for.
template <class Isa, int Tile, int Vectors, Scalar T>
void value_strips(const ValueBlock<T>& b, index_t column, index_t end, index_t& fetched) {
  constexpr index_t width = Vectors * Isa::width;
  const auto fits = [&] {
    const index_t left = end - column;
    return Vectors == 1 ? left > 0 : left >= width && (Vectors == 2 || left != width + Isa::width);
  };
  for (; fits(); column += width) {
    const bool wanted = b.ahead.first != nullptr && fetched < b.ahead.bytes();
    value_tile<Isa, Tile, Vectors>(b, column,
                                   wanted ? reinterpret_cast<const char*>(b.ahead.first) + fetched : nullptr);
    fetched += 64 * strip_lines<Isa, T>(Vectors);
  }
  if constexpr (Vectors > 1) value_strips<Isa, Tile, (Vectors > 4 ? 4 : Vectors - 1)>(b, column, end, fetched);
}

/// All columns for the rows of a tile.
template <class Isa, int Tile, Scalar T>
void value_rows(const ValueBlock<T>& b) {
  constexpr int vectors = Isa::value_vectors(Tile);
  index_t fetched = 0;
  if constexpr (std::is_same_v<T, q8_0>) {
    // The scale of a block of 32 columns joins the weights: a product for each weight, not for each value.
    alignas(64) float scaled[Tile * logit_stride];
    for (index_t i = 0; i < b.values.dim / q8_0::block; ++i) {
      alignas(64) float scales[block];
      gather_scales<Isa>(b.values, b.count, i, scales);
      for (index_t j = 0; j < b.count; j += Isa::width) {
        const auto scale = Isa::load(scales + j);
        simd::unroll<Tile>([&](auto r) {
          Isa::store(scaled + r * logit_stride + j, Isa::mul(Isa::load(b.weights + r * logit_stride + j), scale));
        });
      }
      ValueBlock<T> part = b;
      part.weights = scaled;
      value_strips<Isa, Tile, std::min(vectors, q8_0::block / Isa::width)>(part, i * q8_0::block, (i + 1) * q8_0::block,
                                                                           fetched);
    }
  } else {
    value_strips<Isa, Tile, vectors>(b, 0, b.values.dim, fetched);
  }
  if (b.ahead.first == nullptr) return;
  for (; fetched < b.ahead.bytes(); fetched += 64) {  // keys that are longer than the values
    for (index_t j = 0; j < b.count; ++j) simd::prefetch_l2(b.ahead.first, j * b.ahead.stride_bytes() + fetched);
  }
}

}  // namespace recycled::inline RECYCLED_ABI::kernels
