// Four floats in GNU C++: the definition of every vector operation, and what a machine without a file of its own runs.
#pragma once

#include <bit>
#include <cmath>
#include <cstring>
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
  // Here 2 x 4 or 4 x 2 sums, as SSE2 has sixteen registers and no FMA.
  static constexpr int most_score_rows = 4;
  static constexpr int most_value_rows = 4;
  static constexpr int score_positions(int rows) { return rows == 1 ? 8 : rows == 2 ? 4 : 2; }
  static constexpr int value_vectors(int rows) { return rows == 1 ? 8 : rows == 2 ? 4 : 2; }

  /// GNU C++'s vectors: operators work lane by lane, comparisons give masks.
  using vec [[gnu::vector_size(16)]] = float;

  static vec broadcast(float x) { return vec{x, x, x, x}; }
  static vec zero() { return vec{}; }
  static vec load(const float* p) { return read<vec>(p); }
  static vec load(const half* p) { return widen_half(__builtin_convertvector(read<words>(p), ints)); }
  static vec load(const bfloat16* p) { return std::bit_cast<vec>(__builtin_convertvector(read<words>(p), ints) << 16); }
  /// Whole numbers of a q8_0 block, not multiplied by its scale yet.
  static vec load_quants(const std::int8_t* p) { return __builtin_convertvector((ints{p[0], p[1], p[2], p[3]}), vec); }
  static vec broadcast(half x) { return broadcast(static_cast<float>(x)); }
  static void store(float* p, vec a) { std::memcpy(p, &a, sizeof a); }
  /// Rounded to the nearest, ties to even.
  static void store(half* p, vec a) {
    for (int i = 0; i < width; ++i) p[i] = static_cast<half>(a[i]);
  }
  static void store(bfloat16* p, vec a) {
    for (int i = 0; i < width; ++i) p[i] = static_cast<bfloat16>(a[i]);
  }

  static vec add(vec a, vec b) { return a + b; }
  static vec sub(vec a, vec b) { return a - b; }
  static vec mul(vec a, vec b) { return a * b; }
  static vec div(vec a, vec b) { return a / b; }
  /// a * b + c, with one rounding or two.
  static vec fma(vec a, vec b, vec c) { return a * b + c; }
  /// a > b ? a : b, as x86 has it: where either is NaN, the result is b.
  static vec max(vec a, vec b) { return select(a > b, a, b); }
  /// a < b ? a : b; where either is NaN, the result is b.
  static vec min(vec a, vec b) { return select(a < b, a, b); }
  /// x < y ? a : b; where either is NaN, the result is b.
  static vec select_less(vec x, vec y, vec a, vec b) { return select(x < y, a, b); }
  /// Bit i: a > b in lane i; never for a NaN.
  static unsigned greater_mask(vec a, vec b) {
    const ints bits = (a > b) & ints{1, 2, 4, 8};
    return static_cast<unsigned>((bits[0] | bits[1]) | (bits[2] | bits[3]));
  }
  /// To the nearest whole number, for |a| < 2^22.
  static vec round(vec a) {
    const ints sign = std::bit_cast<ints>(a) & broadcast_bits(sign_bit);
    const vec magic = std::bit_cast<vec>(sign | broadcast_bits(0x4B400000));  // 1.5 * 2^23: no fraction bits are left
    return (a + magic) - magic;
  }
  /// a * 2^n for whole n in [-126, 127].
  static vec scale_by_power_of_2(vec a, vec n) {
    // What is out of range never reaches the conversion: it would be undefined.
    const vec sound = select((n >= broadcast(-126)) & (n <= broadcast(127)), n, zero());
    return a * std::bit_cast<vec>((__builtin_convertvector(sound, ints) + 127) << 23);
  }

  static float reduce_add(vec a) { return (a[0] + a[2]) + (a[1] + a[3]); }
  static float reduce_max(vec a) {
    const auto larger = [](float x, float y) { return x > y ? x : y; };
    return larger(larger(a[0], a[2]), larger(a[1], a[3]));
  }
  /// sums[i] = reduce_add of the i-th vector.
  static void store_sums(float* sums, vec a, vec b, vec c, vec d) {
    sums[0] = reduce_add(a);
    sums[1] = reduce_add(b);
    sums[2] = reduce_add(c);
    sums[3] = reduce_add(d);
  }

  // ---- Codes of four bits (kernels/code_scan.hpp)

  /// Positions in a vector of codes; a position's four codes are sixteen bits: the first two in the low halves of two
  /// bytes, the other two in the high halves.
  static constexpr int code_lanes = 8;
  static constexpr int code_parts = 1;  ///< vectors of positions that are worked on at a time
  using sums16 [[gnu::vector_size(16)]] = std::int16_t;
  struct codes {
    sums16 at[4];
  };
  struct code_weights {
    sums16 at[4];
  };
  static codes load_codes(const std::uint8_t* p) {
    using unsigned16 [[gnu::vector_size(16)]] = std::uint16_t;
    const auto v = read<unsigned16>(p);
    return {{(sums16)(v & 15), (sums16)(v >> 8 & 15), (sums16)(v >> 4 & 15), (sums16)(v >> 12)}};
  }
  /// Weights of four coordinates for all lanes. They stand as a b a b c d c d, so that each half is one broadcast.
  static code_weights load_code_weights(const std::int8_t* p) {
    const auto all = [](std::int8_t x) { return sums16{} + static_cast<std::int16_t>(x); };
    return {{all(p[0]), all(p[1]), all(p[4]), all(p[5])}};
  }
  static sums16 zero_sums16() { return sums16{}; }
  /// sums + the four products of each lane; nothing saturates as long as every sum of two products fits 16 bits.
  static sums16 add_products(sums16 sums, const codes& c, const code_weights& w) {
    return sums + (c.at[0] * w.at[0] + c.at[1] * w.at[1]) + (c.at[2] * w.at[2] + c.at[3] * w.at[3]);
  }

  // ---- Whole numbers of sixteen bits, `code_lanes` of them: what such sums are worked on as

  static void store(std::int16_t* p, sums16 sums) { std::memcpy(p, &sums, sizeof sums); }
  static sums16 load_sums16(const std::int16_t* p) { return read<sums16>(p); }
  static sums16 broadcast_sums16(std::int16_t x) { return sums16{} + x; }
  static sums16 max(sums16 a, sums16 b) { return a > b ? a : b; }
  /// a + b and a - b; what would leave the range stays at its end.
  static sums16 add_saturated(sums16 a, sums16 b) {
    return each(a, b, [](std::int32_t x, std::int32_t y) { return x + y; });
  }
  static sums16 sub_saturated(sums16 a, sums16 b) {
    return each(a, b, [](std::int32_t x, std::int32_t y) { return x - y; });
  }
  /// a * b / 2^15, rounded to the nearest, halves up; not both are -2^15.
  static sums16 multiply_high(sums16 a, sums16 b) {
    return each(a, b, [](std::int32_t x, std::int32_t y) { return (x * y + (1 << 14)) >> 15; });
  }
  /// Bit i: a > b in lane i.
  static unsigned greater_mask(sums16 a, sums16 b) {
    unsigned mask = 0;
    for (int i = 0; i < code_lanes; ++i) mask |= (a[i] > b[i] ? 1U : 0U) << i;
    return mask;
  }
  /// Adds all lanes to those of `sum`, each as the float whose upper sixteen bits it is; which to which is open.
  static vec add_bfloats(vec sum, sums16 bits) {
    const auto pairs = std::bit_cast<ints>(bits);
    return sum + std::bit_cast<vec>(pairs << 16) + std::bit_cast<vec>(pairs & broadcast_bits(~0xFFFF));
  }
  /// p[0, width) as floats, and back: rounded to the nearest, in range.
  static vec load_sums(const std::int16_t* p) {
    using shorts [[gnu::vector_size(8)]] = std::int16_t;
    return __builtin_convertvector(read<shorts>(p), vec);
  }
  static void store_sums(std::int16_t* p, vec a) {
    for (int i = 0; i < width; ++i) p[i] = static_cast<std::int16_t>(std::lrint(a[i]));
  }

 private:
  using ints [[gnu::vector_size(16)]] = std::int32_t;
  using words [[gnu::vector_size(8)]] = std::uint16_t;
  static constexpr std::int32_t sign_bit = std::numeric_limits<std::int32_t>::min();

  template <class V>
  static V read(const void* from) {
    V v;
    std::memcpy(&v, from, sizeof v);
    return v;
  }
  static ints broadcast_bits(std::int32_t x) { return ints{x, x, x, x}; }
  template <class F>
  static sums16 each(sums16 a, sums16 b, const F& f) {
    sums16 result;
    for (int i = 0; i < code_lanes; ++i) {
      const std::int32_t exact = f(a[i], b[i]);
      result[i] = static_cast<std::int16_t>(exact < -32768 ? -32768 : exact > 32767 ? 32767 : exact);
    }
    return result;
  }
  static vec select(ints mask, vec a, vec b) {
    return std::bit_cast<vec>((std::bit_cast<ints>(a) & mask) | (std::bit_cast<ints>(b) & ~mask));
  }
  /// Exponents are moved from a bias of 15 to one of 127, those of infinity and NaN twice as far; subnormal numbers get
  /// the exponent of the smallest normal one, and lose the leading bit that comes with it.
  static vec widen_half(ints bits) {
    const ints exponent = bits & 0x7C00;
    const ints subnormal = exponent == 0;
    const ints special = exponent == 0x7C00;
    const ints moved = ((bits & 0x7FFF) << 13) + (112 << 23) + (special & (112 << 23)) + (subnormal & (1 << 23));
    const vec value = std::bit_cast<vec>(moved) - std::bit_cast<vec>(subnormal & (113 << 23));
    return std::bit_cast<vec>(std::bit_cast<ints>(value) | ((bits & 0x8000) << 16));
  }
};

}  // namespace recycled::inline RECYCLED_ABI::simd
