// Four floats in plain C++: the definition of every vector operation, and what a machine without a file of its own
// runs.
#pragma once

#include <bit>
#include <cmath>
#include <limits>

#include "recycled/types/scalar.hpp"

namespace recycled::inline RECYCLED_ABI::simd {

/// An instruction set is a type with this face. `vec` holds `width` floats; rows of every KV type load as floats.
struct generic {
  static constexpr const char* name = "generic";
  static constexpr int width = 4;
  /// The inner tiles of kernels/score_tile.hpp and value_tile.hpp: how many query rows share a key that has been
  /// loaded, or a value; for so many rows, how many positions of keys, or vectors of a value, are worked on at a time.
  /// The sums (rows x positions, rows x vectors), the loaded keys or values and one query or weight are registers, and
  /// there are enough sums to hide the latency of an FMA. (Few rows have too few where values are q8_0: a block is 32
  /// columns wide.)
  static constexpr int most_score_rows = 2;
  static constexpr int most_value_rows = 2;
  static constexpr int score_positions(int rows) { return rows == 1 ? 8 : 4; }
  static constexpr int value_vectors(int rows) { return rows == 1 ? 8 : 4; }

  struct vec {
    float lane[width];
  };

  static vec broadcast(float x) { return {{x, x, x, x}}; }
  static vec zero() { return broadcast(0); }
  static vec load(const float* p) { return {{p[0], p[1], p[2], p[3]}}; }
  static vec load(const half* p) { return widen(p); }
  static vec load(const bfloat16* p) { return widen(p); }
  /// Whole numbers of a q8_0 block, not multiplied by its scale yet.
  static vec load_quants(const std::int8_t* p) { return widen(p); }
  static vec broadcast(half x) { return broadcast(static_cast<float>(x)); }
  static void store(float* p, vec a) {
    for (int i = 0; i < width; ++i) p[i] = a.lane[i];
  }

  static vec add(vec a, vec b) {
    return each([&](int i) { return a.lane[i] + b.lane[i]; });
  }
  static vec sub(vec a, vec b) {
    return each([&](int i) { return a.lane[i] - b.lane[i]; });
  }
  static vec mul(vec a, vec b) {
    return each([&](int i) { return a.lane[i] * b.lane[i]; });
  }
  static vec div(vec a, vec b) {
    return each([&](int i) { return a.lane[i] / b.lane[i]; });
  }
  /// a * b + c, with one rounding or two.
  static vec fma(vec a, vec b, vec c) {
    return each([&](int i) { return a.lane[i] * b.lane[i] + c.lane[i]; });
  }
  /// a > b ? a : b, as x86 has it: where either is NaN, the result is b.
  static vec max(vec a, vec b) {
    return each([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
  }
  /// a < b ? a : b; where either is NaN, the result is b.
  static vec min(vec a, vec b) {
    return each([&](int i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; });
  }
  /// x < y ? a : b; where either is NaN, the result is b.
  static vec select_less(vec x, vec y, vec a, vec b) {
    return each([&](int i) { return x.lane[i] < y.lane[i] ? a.lane[i] : b.lane[i]; });
  }
  /// Bit i: a > b in lane i; never for a NaN.
  static unsigned greater_mask(vec a, vec b) {
    unsigned mask = 0;
    for (int i = 0; i < width; ++i) mask |= (a.lane[i] > b.lane[i] ? 1U : 0U) << i;
    return mask;
  }
  /// To the nearest whole number, for |a| < 2^22.
  static vec round(vec a) {
    return each([&](int i) {
      const float magic = std::copysign(12582912.0F, a.lane[i]);  // 1.5 * 2^23: no fraction bits are left
      return (a.lane[i] + magic) - magic;
    });
  }
  /// a * 2^n for whole n in [-126, 127].
  static vec scale_by_power_of_2(vec a, vec n) {
    return each([&](int i) {
      // What is out of range never reaches the conversion: it would be undefined.
      const int exponent = n.lane[i] >= -126.0F && n.lane[i] <= 127.0F ? static_cast<int>(n.lane[i]) : 0;
      return a.lane[i] * std::bit_cast<float>((exponent + 127) << 23);
    });
  }

  static float reduce_add(vec a) { return (a.lane[0] + a.lane[2]) + (a.lane[1] + a.lane[3]); }
  static float reduce_max(vec a) {
    const auto larger = [](float x, float y) { return x > y ? x : y; };
    return larger(larger(a.lane[0], a.lane[2]), larger(a.lane[1], a.lane[3]));
  }
  /// sums[i] = reduce_add of the i-th vector.
  static void store_sums(float* sums, vec a, vec b, vec c, vec d) {
    sums[0] = reduce_add(a);
    sums[1] = reduce_add(b);
    sums[2] = reduce_add(c);
    sums[3] = reduce_add(d);
  }

 private:
  template <class F>
  static vec each(const F& f) {
    return {{f(0), f(1), f(2), f(3)}};
  }
  template <class T>
  static vec widen(const T* p) {
    return each([&](int i) { return static_cast<float>(p[i]); });
  }
};

}  // namespace recycled::inline RECYCLED_ABI::simd
