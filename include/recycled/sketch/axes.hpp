// Which directions of a head's keys are worth a coordinate.
//
// What counts is not how far coordinates are off, but logits. So with keys k and queries q as they come, E[qq^T] = S =
// LL^T, the axes are the principal ones of L^T k: of all projections to so few coordinates they keep most of q.k =
// (L^-1 q).(L^T k). Found by orthogonal iteration: a handful of rounds, because directions of nearly the same use may
// stand for each other.
//
// Not by Eigen's solvers: their functions have the same names whatever they are compiled for, and a program that
// carries this library for several instruction sets would run one of them everywhere. Nor do they work in memory that
// is there.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "recycled/simd/simd.hpp"

namespace recycled::inline RECYCLED_ABI::detail {

/// Rows of `stride` floats, a multiple of every vector; behind a row's values stand zeros.
struct Matrix {
  float* first = nullptr;
  index_t stride = 0;
  float* operator[](index_t i) const noexcept { return first + i * stride; }
};

template <class Isa>
float dot(const float* a, const float* b, index_t stride) noexcept {
  auto sum = Isa::zero();
  for (index_t i = 0; i < stride; i += Isa::width) sum = Isa::fma(Isa::load(a + i), Isa::load(b + i), sum);
  return Isa::reduce_add(sum);
}
/// Whether all are numbers: 0 times anything else is none.
template <class Isa>
bool all_finite(const float* row, index_t stride) noexcept {
  auto sum = Isa::zero();
  for (index_t i = 0; i < stride; i += Isa::width) sum = Isa::fma(Isa::load(row + i), Isa::zero(), sum);
  return Isa::reduce_add(sum) == 0;
}
/// to[i] = sum over k < n of a[i * row + k * column] * b[k], for i < rows.
template <class Isa>
void multiply(const float* a, index_t row, index_t column, const Matrix& b, index_t rows, index_t n,
              const Matrix& to) noexcept {
  for (index_t i = 0; i < rows; ++i) {
    for (index_t j = 0; j < to.stride; j += Isa::width) {
      auto sum = Isa::zero();
      for (index_t k = 0; k < n; ++k) {
        sum = Isa::fma(Isa::broadcast(a[i * row + k * column]), Isa::load(b[k] + j), sum);
      }
      Isa::store(to[i] + j, sum);
    }
  }
}
/// moments += sum of v v^T over `count` rows v.
template <class Isa>
void add_moments(const Matrix& rows, index_t count, const Matrix& moments, index_t dim) noexcept {
  for (index_t i = 0; i < dim; ++i) {
    for (index_t j = 0; j < moments.stride; j += Isa::width) {
      auto sum = Isa::load(moments[i] + j);
      for (index_t r = 0; r < count; ++r) {
        sum = Isa::fma(Isa::broadcast(rows[r][i]), Isa::load(rows[r] + j), sum);
      }
      Isa::store(moments[i] + j, sum);
    }
  }
}

/// Makes second moments of `count` queries those of unit size on average, with a share of what they would be if queries
/// came from everywhere: the fewer were seen, the less they say about others.
inline void temper(const Matrix& moments, index_t dim, index_t count) noexcept {
  float mean = 0;
  for (index_t i = 0; i < dim; ++i) mean += moments[i][i] / static_cast<float>(dim);
  const bool known = mean > 0 && mean < std::numeric_limits<float>::infinity();
  const float share = std::max(0.05F, static_cast<float>(dim) / static_cast<float>(4 * std::max(count, index_t{1})));
  for (index_t i = 0; i < dim; ++i) {
    for (index_t j = 0; j < dim; ++j) moments[i][j] = known ? moments[i][j] / mean : 0;
    moments[i][i] += known ? share : 1;
  }
}
/// Replaces the lower triangle of a positive definite matrix by that of L with LL^T = it, the upper one by zeros.
inline void factorize(const Matrix& m, index_t dim) noexcept {
  for (index_t i = 0; i < dim; ++i) {
    for (index_t j = 0; j <= i; ++j) {
      float sum = m[i][j];
      for (index_t k = 0; k < j; ++k) sum -= m[i][k] * m[j][k];
      m[i][j] = j < i ? sum / m[j][j] : std::sqrt(std::max(sum, 1e-6F));
    }
    std::fill(m[i] + i + 1, m[i] + m.stride, 0.0F);
  }
}
/// Makes rows perpendicular and of unit length; what the rows before leave nothing of becomes 0.
template <class Isa>
void orthonormalize(const Matrix& rows, index_t count) noexcept {
  const auto add = [&](index_t to, float factor, index_t from) {
    for (index_t j = 0; j < rows.stride; j += Isa::width) {
      Isa::store(rows[to] + j, Isa::fma(Isa::broadcast(factor), Isa::load(rows[from] + j), Isa::load(rows[to] + j)));
    }
  };
  for (index_t c = 0; c < count; ++c) {
    const float before = dot<Isa>(rows[c], rows[c], rows.stride);
    for (index_t p = 0; p < c; ++p) add(c, -dot<Isa>(rows[c], rows[p], rows.stride), p);
    const float after = dot<Isa>(rows[c], rows[c], rows.stride);
    if (after > 1e-8F * before && after < std::numeric_limits<float>::infinity()) {
      add(c, 1 / std::sqrt(after) - 1, c);
    } else {
      std::fill_n(rows[c], rows.stride, 0.0F);
    }
  }
}

/// What axes are found from and in: `dim` rows each, but for `rows` of scratch.
struct AxisScratch {
  static constexpr index_t rows = 64;  ///< at least the coordinates
  static constexpr index_t floats(index_t dim, index_t stride) { return (4 * dim + 2 * rows) * stride; }

  AxisScratch(float* first, index_t dim, index_t stride)
      : keys{first, stride},
        queries{keys[dim], stride},
        seen{queries[dim], stride},
        product{seen[dim], stride},
        axes{product[dim], stride},
        samples{axes[rows], stride} {}

  Matrix keys;     ///< second moments of keys
  Matrix queries;  ///< and of queries; then L
  Matrix seen;     ///< L^T keys L
  Matrix product;  ///< on the way to others
  Matrix axes;     ///< rows of them
  Matrix samples;  ///< rows that wait to be added to moments
};

/// Where the axes of one head go: `stride` floats for each.
struct SketchAxes {
  float* keys;      ///< a key times an axis is its coordinate
  float* queries;   ///< a query times an axis is what a step of the code means to its logit
  float* inverses;  ///< steps of the code to a unit of the coordinate; 0 for an axis that there is none of
};

/// The `count` leading directions of s.seen, by orthogonal iteration, to s.axes; s.product is them times s.seen.
template <class Isa>
void leading_directions(const AxisScratch& s, index_t dim, index_t count) noexcept {
  constexpr int rounds = 12;
  const index_t stride = s.seen.stride;
  // From the longest rows: they point to where there is most.
  for (index_t i = 0; i < dim; ++i) s.product[i][0] = dot<Isa>(s.seen[i], s.seen[i], stride);
  for (index_t c = 0; c < count; ++c) {
    index_t longest = 0;
    for (index_t i = 1; i < dim; ++i) longest = s.product[i][0] > s.product[longest][0] ? i : longest;
    s.product[longest][0] = -1;
    std::copy_n(s.seen[longest], stride, s.axes[c]);
  }
  for (int round = 0; round < rounds; ++round) {
    orthonormalize<Isa>(s.axes, count);
    multiply<Isa>(s.axes.first, stride, 1, s.seen, count, dim, s.product);
    if (round + 1 < rounds) std::copy_n(s.product.first, count * stride, s.axes.first);
  }
}

/// The leading `coordinates` axes for the moments in `s`; those of queries are tempered.
template <class Isa>
void find_axes(const AxisScratch& s, index_t dim, index_t coordinates, const SketchAxes& to) noexcept {
  // Sixteen even steps, wider than the 0.335 deviations that lose least of a normal distribution: keys have tails, and
  // those of later positions stray further.
  constexpr float step_of_deviation = 0.6F;
  const index_t stride = s.keys.stride, count = std::min(coordinates, dim);
  factorize(s.queries, dim);
  multiply<Isa>(s.queries.first, 1, stride, s.keys, dim, dim, s.product);  // L^T keys
  multiply<Isa>(s.product.first, stride, 1, s.queries, dim, dim, s.seen);
  leading_directions<Isa>(s, dim, count);
  std::fill_n(to.keys, coordinates * stride, 0.0F);
  std::fill_n(to.queries, coordinates * stride, 0.0F);
  std::fill_n(to.inverses, coordinates, 0.0F);
  for (index_t c = 0; c < count; ++c) {
    float* const key = to.keys + c * stride;
    float* const query = to.queries + c * stride;
    const float step = step_of_deviation * std::sqrt(dot<Isa>(s.axes[c], s.product[c], stride));
    if (!(step > 0 && 1 / step > 0)) continue;
    for (index_t i = 0; i < dim; ++i) key[i] = dot<Isa>(s.queries[i], s.axes[c], stride);
    for (index_t i = dim - 1; i >= 0; --i) {  // L^T query = axis
      float sum = s.axes[c][i] * step;
      for (index_t k = i + 1; k < dim; ++k) sum -= s.queries[k][i] * query[k];
      query[i] = sum / s.queries[i][i];
    }
    if (all_finite<Isa>(key, stride) && all_finite<Isa>(query, stride)) {
      to.inverses[c] = 1 / step;
    } else {
      std::fill_n(query, stride, 0.0F);
      std::fill_n(key, stride, 0.0F);
    }
  }
}

}  // namespace recycled::inline RECYCLED_ABI::detail
