// The value half of the inner loops: output = output * correction + einsum("rj,jv->rv", weights, values).
//
// `value_rows` query rows share a load of a value, and the sums in registers are as many as the instruction set has
// room for: a strip of columns at a time, over all positions of the block.
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
  const float* weights;     // [rows, block]
  const float* correction;  // [rows]
  float* output;            // [rows, stride]
  float* lost;              // [rows, stride]: what rounding took from output so far
  index_t stride;
  Rows<T> ahead;  // rows to fetch meanwhile, as many; none if null
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

/// Asks for columns [column, column + columns) of the j-th row ahead.
template <Scalar T>
void fetch_ahead(const ValueBlock<T>& b, index_t j, index_t column, index_t columns) {
  if (b.ahead.first == nullptr) return;
  for (index_t c = column; c < column + columns; c += values_per_line<T>) {
    simd::prefetch(b.ahead[j] + c / values_per_element<T>);
  }
}

/// output[r][column...] = output * correction[r] + sum_j weights[r][j] values[j][column...], for Tile rows and
/// `Vectors` vectors from `column` on. A block has sums of its own, and they join the output by Kahan's summation: the
/// error does not grow with the context. (Without it 131072 equal values are off by 135 eps.)
template <class Isa, int Tile, int Vectors, Scalar T>
void value_tile(const ValueBlock<T>& b, index_t column) {
  typename Isa::vec sums[Tile][Vectors];
  for (auto& row : sums) std::fill(row, row + Vectors, Isa::zero());
  const auto add_rows = [&](const auto& load_value) {
    for (index_t j = 0; j < b.count; ++j) {
      fetch_ahead(b, j, column, Vectors * Isa::width);
      const T* row = b.values[j];
      for (int v = 0; v < Vectors; ++v) {
        const typename Isa::vec value = load_value(row, column + v * Isa::width);
        for (int r = 0; r < Tile; ++r) {
          sums[r][v] = Isa::fma(value, Isa::broadcast(b.weights[r * block + j]), sums[r][v]);
        }
      }
    }
  };
  const index_t rest = b.values.dim - column;
  if (rest >= Vectors * Isa::width) {
    add_rows([](const T* row, index_t c) { return simd::load<Isa>(row, c); });
  } else {  // the end of a row that is no whole number of vectors; Vectors is 1
    add_rows([rest](const T* row, index_t c) { return simd::load_first<Isa>(row, c, rest); });
  }
  for (int r = 0; r < Tile; ++r) {
    for (int v = 0; v < Vectors; ++v) {
      const index_t place = r * b.stride + column + v * Isa::width;
      const auto correction = Isa::broadcast(b.correction[r]);
      add_compensated<Isa>(b.output + place, b.lost + place, correction, sums[r][v]);
    }
  }
}

/// All columns from `column` on: strips of `Vectors` vectors, then of half as many, down to one.
template <class Isa, int Tile, int Vectors, Scalar T>
void value_strips(const ValueBlock<T>& b, index_t column) {
  constexpr index_t step = Vectors * Isa::width;
  for (; column + (Vectors == 1 ? 1 : step) <= b.values.dim; column += step) {
    value_tile<Isa, Tile, Vectors>(b, column);
  }
  if constexpr (Vectors > 1) value_strips<Isa, Tile, Vectors / 2>(b, column);
}

}  // namespace recycled::inline RECYCLED_ABI::kernels
