// AVX2 with FMA and F16C: eight floats, sixteen registers.
#pragma once

#include <immintrin.h>

#include "recycled/simd/generic.hpp"

namespace recycled::inline RECYCLED_ABI::simd {

/// What each operation means: simd/generic.hpp.
struct avx2 {
  static constexpr const char* name = "avx2";
  static constexpr int width = 8;
  // 4 x 3 or 3 x 4 sums, 3 rows of one side and 1 of the other: 16 of 16 registers. Two FMAs a cycle with a latency of
  // 4 need 8 sums.
  static constexpr int most_score_rows = 4;
  static constexpr int most_value_rows = 4;
  static constexpr int score_positions(int rows) { return rows == 4 ? 3 : rows == 1 ? 8 : 4; }
  static constexpr int value_vectors(int rows) { return rows == 4 ? 3 : rows == 1 ? 8 : 4; }

  using vec = __m256;

  static vec broadcast(float x) { return _mm256_set1_ps(x); }
  static vec zero() { return _mm256_setzero_ps(); }
  static vec load(const float* p) { return _mm256_loadu_ps(p); }
  static vec load(const half* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
  static vec load(const bfloat16* p) {
    const __m256i bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16));
  }
  static vec load_quants(const std::int8_t* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
  }
  static vec broadcast(half x) { return _mm256_cvtph_ps(_mm_set1_epi16(Eigen::numext::bit_cast<std::int16_t>(x))); }
  static void store(float* p, vec a) { _mm256_storeu_ps(p, a); }
  static void store(half* p, vec a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
  }
  static void store(bfloat16* p, vec a) {
    const __m256i bits = _mm256_castps_si256(a), one = _mm256_set1_epi32(1);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), one);
    const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
    const __m256i quiet =
        _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));  // what rounding makes of a NaN may be none
    const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
    const __m256i words = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, is_nan), 16);
    const __m128i low = _mm256_castsi256_si128(words), high = _mm256_extracti128_si256(words, 1);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_packus_epi32(low, high));
  }

  static vec add(vec a, vec b) { return _mm256_add_ps(a, b); }
  static vec sub(vec a, vec b) { return _mm256_sub_ps(a, b); }
  static vec mul(vec a, vec b) { return _mm256_mul_ps(a, b); }
  static vec div(vec a, vec b) { return _mm256_div_ps(a, b); }
  static vec fma(vec a, vec b, vec c) { return _mm256_fmadd_ps(a, b, c); }
  static vec max(vec a, vec b) { return _mm256_max_ps(a, b); }
  static vec min(vec a, vec b) { return _mm256_min_ps(a, b); }
  static vec select_less(vec x, vec y, vec a, vec b) { return _mm256_blendv_ps(b, a, _mm256_cmp_ps(x, y, _CMP_LT_OQ)); }
  static unsigned greater_mask(vec a, vec b) {
    return static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)));
  }
  static vec round(vec a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static vec scale_by_power_of_2(vec a, vec n) {
    const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_mul_ps(a, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
  }

  static float reduce_add(vec a) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
  }
  static float reduce_max(vec a) {
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
  }
  // One transpose of four accumulators in place of four reductions: 11 instructions, not 24.
  static void store_sums(float* sums, vec a, vec b, vec c, vec d) {
    const vec abcd = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    _mm_storeu_ps(sums, _mm_add_ps(_mm256_castps256_ps128(abcd), _mm256_extractf128_ps(abcd, 1)));
  }

  // 2 vectors of positions x 4 rows: 8 sums, 4 codes, 2 weights: 14 of 16 registers.
  static constexpr int code_lanes = 16;
  static constexpr int code_parts = 2;
  using sums16 = __m256i;
  struct codes {
    __m256i first, second;
  };
  using code_weights = codes;
  static codes load_codes(const std::uint8_t* p) {
    const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), low = _mm256_set1_epi8(15);
    return {_mm256_and_si256(both, low), _mm256_and_si256(_mm256_srli_epi16(both, 4), low)};
  }
  static code_weights load_code_weights(const std::int8_t* p) { return {broadcast_four(p), broadcast_four(p + 4)}; }
  static sums16 zero_sums16() { return _mm256_setzero_si256(); }
  static sums16 add_products(sums16 sums, const codes& c, const code_weights& w) {
    return _mm256_add_epi16(
        sums, _mm256_add_epi16(_mm256_maddubs_epi16(c.first, w.first), _mm256_maddubs_epi16(c.second, w.second)));
  }
  static void store(std::int16_t* p, sums16 sums) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), sums); }
  static sums16 load_sums16(const std::int16_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static sums16 broadcast_sums16(std::int16_t x) { return _mm256_set1_epi16(x); }
  static sums16 max(sums16 a, sums16 b) { return _mm256_max_epi16(a, b); }
  static sums16 add_saturated(sums16 a, sums16 b) { return _mm256_adds_epi16(a, b); }
  static sums16 sub_saturated(sums16 a, sums16 b) { return _mm256_subs_epi16(a, b); }
  static sums16 multiply_high(sums16 a, sums16 b) { return _mm256_mulhrs_epi16(a, b); }
  static unsigned greater_mask(sums16 a, sums16 b) {
    const __m256i above = _mm256_cmpgt_epi16(a, b);
    const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(above), _mm256_extracti128_si256(above, 1));
    return static_cast<unsigned>(_mm_movemask_epi8(bytes));
  }
  static vec add_bfloats(vec sum, sums16 bits) {
    const __m256i odd = _mm256_and_si256(bits, _mm256_set1_epi32(~0xFFFF)), even = _mm256_slli_epi32(bits, 16);
    return _mm256_add_ps(sum, _mm256_add_ps(_mm256_castsi256_ps(even), _mm256_castsi256_ps(odd)));
  }
  static vec load_sums(const std::int16_t* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }
  static void store_sums(std::int16_t* p, vec a) {
    const __m256i whole = _mm256_cvtps_epi32(a);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                     _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1)));
  }

 private:
  static __m256i broadcast_four(const std::int8_t* p) {
    std::int32_t four = 0;
    __builtin_memcpy(&four, p, sizeof four);
    return _mm256_set1_epi32(four);
  }
};

}  // namespace recycled::inline RECYCLED_ABI::simd
