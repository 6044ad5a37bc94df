// exp and tanh of a vector, to about an ulp, with NaN passed on.
#pragma once

#include "recycled/simd/simd.hpp"

namespace recycled::inline RECYCLED_ABI::simd {

/// c[0] + c[1] x + ... + c[n-1] x^(n-1), by Horner.
template <class Isa, std::size_t N>
typename Isa::vec polynomial(typename Isa::vec x, const float (&c)[N]) {
  typename Isa::vec sum = Isa::broadcast(c[N - 1]);
  for (std::size_t i = N - 1; i-- > 0;) sum = Isa::fma(sum, x, Isa::broadcast(c[i]));
  return sum;
}

/// e^x for x <= 88, relative error below 2e-7. Below -87.33, where floats turn subnormal, exactly 0; NaN stays NaN.
template <class Isa>
typename Isa::vec exp(typename Isa::vec x) {
  using vec = typename Isa::vec;
  const vec lowest = Isa::broadcast(-87.33F);
  // x = n ln 2 + r with |r| <= ln 2 / 2. ln 2 comes in two parts, of which n times the first is exact.
  const vec clamped = Isa::max(lowest, x);
  const vec n = Isa::round(Isa::mul(clamped, Isa::broadcast(1.44269504F)));
  const vec r = Isa::fma(n, Isa::broadcast(2.12194440e-4F), Isa::fma(n, Isa::broadcast(-0.693359375F), clamped));
  // (e^r - 1 - r) / r^2: minimax fit of degree 4 for the relative error of e^r.
  constexpr float tail[] = {0.49999993F, 0.16666521F, 0.041668388F, 0.0083687170F, 0.0013814598F};
  const vec one = Isa::broadcast(1);
  const vec e_r = Isa::fma(Isa::fma(polynomial<Isa>(r, tail), r, one), r, one);
  return Isa::select_less(x, lowest, Isa::zero(), Isa::scale_by_power_of_2(e_r, n));
}

/// tanh x with an error below 3e-7 relative to tanh x; NaN stays NaN.
template <class Isa>
typename Isa::vec tanh(typename Isa::vec x) {
  using vec = typename Isa::vec;
  // Beyond +-10 a float can't tell tanh from +-1. The constant comes first: then a NaN passes.
  const vec clamped = Isa::min(Isa::broadcast(10), Isa::max(Isa::broadcast(-10), x));
  const vec one = Isa::broadcast(1);
  const vec e_2x = exp<Isa>(Isa::add(clamped, clamped));
  const vec far = Isa::sub(one, Isa::div(Isa::broadcast(2), Isa::add(e_2x, one)));
  // Near 0 that difference cancels; (tanh x - x) / x^3 as a fit of degree 4 in x^2 does not.
  constexpr float tail[] = {-0.33333284F, 0.13331491F, -0.053743497F, 0.020650584F, -0.0057170414F};
  const vec square = Isa::mul(x, x);
  const vec near = Isa::fma(polynomial<Isa>(square, tail), Isa::mul(square, x), x);
  return Isa::select_less(square, Isa::broadcast(0.390625F), near, far);
}

/// soft_cap * tanh(x / soft_cap).
template <class Isa>
typename Isa::vec capped(typename Isa::vec x, float soft_cap) {
  return Isa::mul(tanh<Isa>(Isa::mul(x, Isa::broadcast(1.0F / soft_cap))), Isa::broadcast(soft_cap));
}

}  // namespace recycled::inline RECYCLED_ABI::simd
