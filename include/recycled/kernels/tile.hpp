// The inner loops: a block of positions against a tile of query rows, one pass over K and V for all of them.
//
//   logits  = einsum("rd,jd->rj", queries, keys)
//   weights = exp(logits - max)
//   output  = output * correction + einsum("rj,jv->rv", weights, values)
//
// Registers decide the tile. A key vector that has been loaded (and converted) is used for `score_rows` query rows, a
// query vector for 4 positions; their 4 x score_rows sums stay in registers over the whole row and are added up by one
// transpose at its end. For values, `value_rows` query rows share a load, and the sums in registers are as many as the
// instruction set has room for.
#pragma once

#include <algorithm>
#include <bit>

#include "recycled/kernels/softmax_state.hpp"
#include "recycled/simd/math.hpp"
#include "recycled/types/shape.hpp"

namespace recycled::inline RECYCLED_ABI::kernels {

/// Positions whose logits are kept at a time: keys and values of a block (2 x 16 KiB at 128 halves a row) fit in L1/L2,
/// and the softmax is corrected once a block instead of once a position.
inline constexpr index_t block = 64;

/// Contiguous rows at a fixed distance.
template <Scalar T>
struct Rows {
  const T* first = nullptr;
  index_t stride = 0;  ///< in elements of T
  index_t dim = 0;     ///< values in a row

  const T* operator[](index_t i) const noexcept { return first + i * stride; }
  index_t bytes() const noexcept { return dim / values_per_element<T> * static_cast<index_t>(sizeof(T)); }
};

/// Query rows, multiplied by the scale already, each padded with zeros to whole vectors.
struct Queries {
  const float* first = nullptr;
  index_t stride = 0;
  index_t rows = 0;
};

/// Calls f(constant<Tile>, first row) until `rows` rows are covered, Tile = Most as long as that many are left.
template <int Most, class F>
void for_row_tiles(index_t rows, const F& f) {
  index_t row = 0;
  for (; row + Most <= rows; row += Most) f(std::integral_constant<int, Most>{}, row);
  if constexpr (Most > 1) {
    if (row < rows) {
      for_row_tiles<Most - 1>(rows - row, [&](auto tile, index_t r) { f(tile, row + r); });
    }
  }
}

/// logits[r][j] = queries[r] . keys[j] for Tile rows and 4 positions.
template <class Isa, int Tile, Scalar T>
void score_tile(const T* const (&keys)[4], index_t dim, const float* queries, index_t query_stride, float* logits) {
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
    add(d, [d](const T* key) { return simd::load<Isa>(key, d); });
  }
  if (d < dim) add(d, [d, dim](const T* key) { return simd::load_first<Isa>(key, d, dim - d); });
  for (int r = 0; r < Tile; ++r) {
    Isa::store_sums(logits + r * block, sums[r][0], sums[r][1], sums[r][2], sums[r][3]);
  }
}

/// logits[r][j] for all rows and the `count` <= block positions from `begin` on. While a tile is computed, the values
/// of its positions travel to the cache: the prefetch is what keeps memory busy at all times.
template <class Isa, Scalar T>
void score_block(const Rows<T>& keys, const Rows<T>& values, index_t begin, index_t count, const Queries& queries,
                 float* logits) {
  for (index_t j = 0; j < count; j += 4) {
    const auto position = [&](index_t i) { return begin + std::min(j + i, count - 1); };
    const T* const four[4] = {keys[position(0)], keys[position(1)], keys[position(2)], keys[position(3)]};
    for (index_t i = 0; i < 4; ++i) simd::prefetch(values[position(i)], values.bytes());
    for_row_tiles<Isa::score_rows>(queries.rows, [&](auto tile, index_t r) {
      score_tile<Isa, tile()>(four, keys.dim, queries.first + r * queries.stride, queries.stride,
                              logits + r * block + j);
    });
  }
}

/// Turns a row's logits into weights relative to the new maximum; returns what all earlier sums must be multiplied by.
template <class Isa>
float soften(float* logits, index_t count, float& max, float& sum) {
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
  sum = sum * correction + Isa::reduce_add(weights);
  max = new_max;
  return correction;
}

/// output[r][column...] = output * correction[r] + sum_j weights[r][j] values[j][column...], for Tile rows and
/// `Vectors` vectors from `column` on.
template <class Isa, int Tile, int Vectors, Scalar T>
void value_tile(const Rows<T>& values, index_t begin, index_t count, index_t column, const float* weights,
                const float* correction, float* output, index_t output_stride) {
  // A block has sums of its own: rounding errors grow with its length and the number of blocks, not with the context.
  typename Isa::vec sums[Tile][Vectors];
  for (auto& row : sums) std::fill(row, row + Vectors, Isa::zero());
  const auto add = [&](index_t j, const auto& load_value) {
    for (int v = 0; v < Vectors; ++v) {
      const typename Isa::vec value = load_value(column + v * Isa::width);
      for (int r = 0; r < Tile; ++r) {
        sums[r][v] = Isa::fma(value, Isa::broadcast(weights[r * block + j]), sums[r][v]);
      }
    }
  };
  const index_t rest = values.dim - column;
  if (rest >= Vectors * Isa::width) {
    for (index_t j = 0; j < count; ++j) {
      const T* row = values[begin + j];
      add(j, [row](index_t c) { return simd::load<Isa>(row, c); });
    }
  } else {  // the end of a row that is no whole number of vectors; Vectors is 1
    for (index_t j = 0; j < count; ++j) {
      const T* row = values[begin + j];
      add(j, [row, rest](index_t c) { return simd::load_first<Isa>(row, c, rest); });
    }
  }
  for (int r = 0; r < Tile; ++r) {
    for (int v = 0; v < Vectors; ++v) {
      float* place = output + r * output_stride + column + v * Isa::width;
      Isa::store(place, Isa::fma(Isa::load(place), Isa::broadcast(correction[r]), sums[r][v]));
    }
  }
}

/// All columns from `column` on: strips of `Vectors` vectors, then of half as many, down to one.
template <class Isa, int Tile, int Vectors, Scalar T>
void value_strips(const Rows<T>& values, index_t begin, index_t count, index_t column, const float* weights,
                  const float* correction, float* output, index_t output_stride) {
  constexpr index_t step = Vectors * Isa::width;
  for (; column + (Vectors == 1 ? 1 : step) <= values.dim; column += step) {
    value_tile<Isa, Tile, Vectors>(values, begin, count, column, weights, correction, output, output_stride);
  }
  if constexpr (Vectors > 1) {
    value_strips<Isa, Tile, Vectors / 2>(values, begin, count, column, weights, correction, output, output_stride);
  }
}

/// The running softmax of the rows of a tile, in memory that Workspace hands out.
struct TileState {
  float* max = nullptr;         ///< [rows]
  float* sum = nullptr;         ///< [rows]
  float* correction = nullptr;  ///< [rows], scratch of one block
  float* logits = nullptr;      ///< [rows, block], scratch of one block
  float* output = nullptr;      ///< [rows, stride]
  index_t stride = 0;           ///< value_dim in whole vectors
  index_t rows = 0;

  /// Rows [first, first + count) as a state of their own.
  TileState part(index_t first, index_t count) const {
    return {max + first, sum + first, correction + first, logits + first * block, output + first * stride,
            stride,      count};
  }
  void clear() const {
    std::fill(max, max + rows, SoftmaxState::empty_max);
    std::fill(sum, sum + rows, 0.0F);
    std::fill(output, output + rows * stride, 0.0F);
  }
  SoftmaxState row(index_t r) const { return {max[r], sum[r], output + r * stride}; }
};

/// Where a refresh wants the logits of every position: row r's logit of position j goes to first[r * stride + j].
struct LogitSink {
  float* first = nullptr;  ///< null: nobody wants them
  index_t stride = 0;
};

/// Adds positions [begin, begin + count), at most a block, to the state: the module comment's three lines. Every row of
/// the tile must see all of these positions. A row's arithmetic does not depend on which rows share its tile.
template <class Isa, Scalar T>
void attend_block(const Rows<T>& keys, const Rows<T>& values, index_t begin, index_t count, const Queries& queries,
                  float soft_cap, const TileState& state, const LogitSink& sink) {
  score_block<Isa>(keys, values, begin, count, queries, state.logits);
  for (index_t r = 0; r < queries.rows; ++r) {
    float* logits = state.logits + r * block;
    if (soft_cap > 0) {
      for (index_t j = 0; j < count; j += Isa::width) {
        const auto relative = Isa::mul(Isa::load(logits + j), Isa::broadcast(1.0F / soft_cap));
        Isa::store(logits + j, Isa::mul(simd::tanh<Isa>(relative), Isa::broadcast(soft_cap)));
      }
    }
    if (sink.first != nullptr) std::copy(logits, logits + count, sink.first + r * sink.stride + begin);
    state.correction[r] = soften<Isa>(logits, count, state.max[r], state.sum[r]);
  }
  for_row_tiles<Isa::value_rows>(queries.rows, [&](auto tile, index_t r) {
    constexpr int vectors = std::min(8, static_cast<int>(std::bit_floor(unsigned{Isa::accumulators} / tile())));
    value_strips<Isa, tile(), vectors>(values, begin, count, 0, state.logits + r * block, state.correction + r,
                                       state.output + r * state.stride, state.stride);
  });
}

/// Adds positions [range.begin, range.end) to the state, in blocks that start at multiples of the block size.
template <class Isa, Scalar T>
void attend_range(const Rows<T>& keys, const Rows<T>& values, Range range, const Queries& queries, float soft_cap,
                  const TileState& state, const LogitSink& sink = {}) {
  for (index_t begin = range.begin; begin < range.end;) {
    const index_t end = std::min(range.end, (begin / block + 1) * block);
    for (index_t j = end; j < std::min(range.end, end + block); ++j) simd::prefetch(keys[j], keys.bytes());
    attend_block<Isa>(keys, values, begin, end - begin, queries, soft_cap, state, sink);
    begin = end;
  }
}

}  // namespace recycled::inline RECYCLED_ABI::kernels
