// How far a query has turned.
#pragma once

#include <cmath>

#include "recycled/simd/simd.hpp"

namespace recycled::inline RECYCLED_ABI::kernels {

/// a.b / (|a| |b|) for two vectors of `dim` values. NaN where one is zero, or not a number.
template <class Isa = simd::native>
float cosine(const float* a, const float* b, index_t dim) {
  using vec = typename Isa::vec;
  vec ab = Isa::zero();
  vec aa = Isa::zero();
  vec bb = Isa::zero();
  const auto add = [&](vec x, vec y) {
    ab = Isa::fma(x, y, ab);
    aa = Isa::fma(x, x, aa);
    bb = Isa::fma(y, y, bb);
  };
  index_t i = 0;
  for (; i + Isa::width <= dim; i += Isa::width) add(Isa::load(a + i), Isa::load(b + i));
  if (i < dim) add(simd::load_first<Isa>(a, i, dim - i), simd::load_first<Isa>(b, i, dim - i));
  // In double: each sum may be as large as a float holds, or as small.
  const auto sum = [](vec v) { return static_cast<double>(Isa::reduce_add(v)); };
  return static_cast<float>(sum(ab) / std::sqrt(sum(aa) * sum(bb)));
}

}  // namespace recycled::inline RECYCLED_ABI::kernels
