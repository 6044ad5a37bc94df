// AVX-512 (F, BW, DQ, VL): sixteen floats, thirty-two registers, masks for the ends of rows.
#pragma once

#include <immintrin.h>

#include <bit>

#include "recycled/simd/generic.hpp"

namespace recycled::inline RECYCLED_ABI::simd {

/// What each operation means: simd/generic.hpp.
///
/// bfloat16 rows are widened, not multiplied by AVX512_BF16's dot product: with queries rounded to bfloat16 its logits
/// are off by thousands of float ulps, and with queries split in three parts (float's accuracy) a tile of 4 rows takes
/// three times as long, 37 ns a position of 128 dimensions against 12 (Emerald Rapids).
struct avx512 {
  static constexpr const char* name = "avx512";
  static constexpr int width = 16;
  // 4 x 4 sums, 4 keys or values, 1 query or weight: 21 of 32 registers. (Score tiles of 4 x 6 save one load in six,
  // tiles of 8 x 3 half of the conversions; both lose it by transposes that are not full.) Values have no transpose: 8
  // rows x 2 vectors take 16 ns a position of group 8 and 128 halves where twice 4 x 4 take 19 (Emerald Rapids).
  static constexpr int most_score_rows = 4;
  static constexpr int most_value_rows = 8;
  static constexpr int score_positions(int rows) { return rows <= 2 ? 8 : 4; }
  static constexpr int value_vectors(int rows) { return rows <= 2 ? 8 : rows <= 4 ? 4 : 2; }

  using vec = __m512;

  static vec broadcast(float x) { return _mm512_set1_ps(x); }
  static vec zero() { return _mm512_setzero_ps(); }
  static vec load(const float* p) { return _mm512_loadu_ps(p); }
  static vec load(const half* p) { return widen_half(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
  static vec load(const bfloat16* p) { return widen_bfloat(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
  static vec load_quants(const std::int8_t* p) {
    const __m128i quants = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm512_maskz_cvtepi32_ps(all, _mm512_maskz_cvtepi8_epi32(all, quants));
  }
  static vec broadcast(half x) { return widen_half(_mm256_set1_epi16(Eigen::numext::bit_cast<std::int16_t>(x))); }
  // The first n < width values, zeros behind them; nothing beyond them is read.
  static vec load_first(const float* p, index_t n) { return _mm512_maskz_loadu_ps(mask(n), p); }
  static vec load_first(const half* p, index_t n) { return widen_half(_mm256_maskz_loadu_epi16(mask(n), p)); }
  static vec load_first(const bfloat16* p, index_t n) { return widen_bfloat(_mm256_maskz_loadu_epi16(mask(n), p)); }
  static void store(float* p, vec a) { _mm512_storeu_ps(p, a); }
  static void store(half* p, vec a) {
    const __m256i halfs = _mm512_maskz_cvtps_ph(all, a, _MM_FROUND_TO_NEAREST_INT);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), halfs);
  }
  // Not AVX512_BF16's conversion, which takes subnormal numbers for zeros.
  static void store(bfloat16* p, vec a) {
    const __m512i bits = _mm512_castps_si512(a);
    const __m512i odd = _mm512_and_si512(_mm512_maskz_srli_epi32(all, bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
    const __m512i quiet =
        _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));  // what rounding makes of a NaN may be none
    const __m512i kept = _mm512_mask_blend_epi32(_mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), rounded, quiet);
    const __m256i words = _mm512_maskz_cvtepi32_epi16(all, _mm512_maskz_srli_epi32(all, kept, 16));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), words);
  }

  static vec add(vec a, vec b) { return _mm512_add_ps(a, b); }
  static vec sub(vec a, vec b) { return _mm512_sub_ps(a, b); }
  static vec mul(vec a, vec b) { return _mm512_mul_ps(a, b); }
  static vec div(vec a, vec b) { return _mm512_div_ps(a, b); }
  static vec fma(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }
  static vec max(vec a, vec b) { return _mm512_maskz_max_ps(all, a, b); }
  static vec min(vec a, vec b) { return _mm512_maskz_min_ps(all, a, b); }
  static vec select_less(vec x, vec y, vec a, vec b) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, y, _CMP_LT_OQ), b, a);
  }
  static unsigned greater_mask(vec a, vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
  static vec round(vec a) { return _mm512_maskz_roundscale_ps(all, a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static vec scale_by_power_of_2(vec a, vec n) { return _mm512_maskz_scalef_ps(all, a, n); }

  static float reduce_add(vec a) {
    const __m256 half = _mm256_add_ps(low(a), high(a));
    __m128 quarter = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    quarter = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
    return _mm_cvtss_f32(_mm_add_ss(quarter, _mm_movehdup_ps(quarter)));
  }
  static float reduce_max(vec a) {
    const __m256 half = _mm256_max_ps(low(a), high(a));
    __m128 quarter = _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    quarter = _mm_max_ps(quarter, _mm_movehl_ps(quarter, quarter));
    return _mm_cvtss_f32(_mm_max_ss(quarter, _mm_movehdup_ps(quarter)));
  }
  // One transpose of four accumulators: every 128-bit lane gets its partial sums of a, b, c, d, then the lanes add up.
  static void store_sums(float* sums, vec a, vec b, vec c, vec d) {
    const vec ab = _mm512_add_ps(_mm512_maskz_unpacklo_ps(all, a, b), _mm512_maskz_unpackhi_ps(all, a, b));
    const vec cd = _mm512_add_ps(_mm512_maskz_unpacklo_ps(all, c, d), _mm512_maskz_unpackhi_ps(all, c, d));
    const vec abcd = _mm512_add_ps(_mm512_maskz_shuffle_ps(all, ab, cd, _MM_SHUFFLE(1, 0, 1, 0)),
                                   _mm512_maskz_shuffle_ps(all, ab, cd, _MM_SHUFFLE(3, 2, 3, 2)));
    const __m256 lanes = _mm256_add_ps(low(abcd), high(abcd));
    _mm_storeu_ps(sums, _mm_add_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps(lanes, 1)));
  }

  static constexpr int code_lanes = 32;
  static constexpr int code_parts = 1;
  using sums16 = __m512i;
  struct codes {
    __m512i first, second;
  };
  using code_weights = codes;
  static codes load_codes(const std::uint8_t* p) {
    const __m512i both = _mm512_loadu_si512(p), low = _mm512_set1_epi8(15);
    return {_mm512_and_si512(both, low), _mm512_and_si512(_mm512_srli_epi16(both, 4), low)};
  }
  static code_weights load_code_weights(const std::int8_t* p) { return {broadcast_four(p), broadcast_four(p + 4)}; }
  static sums16 zero_sums16() { return _mm512_setzero_si512(); }
  static sums16 add_products(sums16 sums, const codes& c, const code_weights& w) {
    return _mm512_add_epi16(
        sums, _mm512_add_epi16(_mm512_maddubs_epi16(c.first, w.first), _mm512_maddubs_epi16(c.second, w.second)));
  }
  static void store(std::int16_t* p, sums16 sums) { _mm512_storeu_si512(p, sums); }
  static sums16 load_sums16(const std::int16_t* p) { return _mm512_loadu_si512(p); }
  static sums16 broadcast_sums16(std::int16_t x) { return _mm512_set1_epi16(x); }
  static sums16 max(sums16 a, sums16 b) { return _mm512_maskz_max_epi16(all32, a, b); }
  static sums16 add_saturated(sums16 a, sums16 b) { return _mm512_maskz_adds_epi16(all32, a, b); }
  static sums16 sub_saturated(sums16 a, sums16 b) { return _mm512_maskz_subs_epi16(all32, a, b); }
  static sums16 multiply_high(sums16 a, sums16 b) { return _mm512_maskz_mulhrs_epi16(all32, a, b); }
  static unsigned greater_mask(sums16 a, sums16 b) { return _mm512_cmpgt_epi16_mask(a, b); }
  static vec add_bfloats(vec sum, sums16 bits) {
    const __m512i odd = _mm512_and_si512(bits, _mm512_set1_epi32(~0xFFFF));
    const __m512i even = _mm512_maskz_slli_epi32(all, bits, 16);
    return _mm512_add_ps(sum, _mm512_add_ps(_mm512_castsi512_ps(even), _mm512_castsi512_ps(odd)));
  }
  static vec load_sums(const std::int16_t* p) {
    const __m256i sums = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_maskz_cvtepi32_ps(all, _mm512_maskz_cvtepi16_epi32(all, sums));
  }
  static void store_sums(std::int16_t* p, vec a) {
    const __m256i whole = _mm512_maskz_cvtsepi32_epi16(all, _mm512_maskz_cvtps_epi32(all, a));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), whole);
  }
  /// from[at[i]]
  static vec gather(const float* from, const index_t* at) {
    const auto eight = [from](const index_t* p) {
      return _mm512_mask_i64gather_ps(_mm256_setzero_ps(), 0xFF, _mm512_loadu_si512(p), from, 4);
    };
    return _mm512_maskz_insertf32x8(all, _mm512_castps256_ps512(eight(at)), eight(at + 8), 1);
  }
  /// from[at[i]]; of each two that are at an even place both are read.
  static vec gather_sums(const std::int16_t* from, const index_t* at) {
    const auto eight = [from](const index_t* p) {
      const __m512i places = _mm512_loadu_si512(p);
      const __m256i pairs =
          _mm512_mask_i64gather_epi32(_mm256_setzero_si256(), 0xFF, _mm512_maskz_srli_epi64(0xFF, places, 1), from, 4);
      const __m256i second = _mm512_maskz_cvtepi64_epi32(0xFF, _mm512_maskz_slli_epi64(0xFF, places, 4));
      return _mm256_srav_epi32(pairs, _mm256_and_si256(second, _mm256_set1_epi32(16)));
    };
    const __m512i both = _mm512_maskz_inserti32x8(all, _mm512_castsi256_si512(eight(at)), eight(at + 8), 1);
    return _mm512_maskz_cvtepi32_ps(all, _mm512_maskz_srai_epi32(all, _mm512_maskz_slli_epi32(all, both, 16), 16));
  }
  /// Writes the lanes of `mask` and returns their end; `width` floats are overwritten, however many it is: writing some
  /// lanes to memory is slow on Zen 4.
  static float* append(vec a, unsigned mask, float* to) {
    _mm512_storeu_ps(to, _mm512_maskz_compress_ps(static_cast<__mmask16>(mask), a));
    return to + std::popcount(mask);
  }

 private:
  static __m512i broadcast_four(const std::int8_t* p) {
    std::int32_t four = 0;
    __builtin_memcpy(&four, p, sizeof four);
    return _mm512_set1_epi32(four);
  }
  static __mmask16 mask(index_t n) { return static_cast<__mmask16>((1U << n) - 1U); }
  // Zero-masking forms under a full mask: the plain ones start from a register that GCC 12 takes for uninitialised, and
  // its warning would reach the host's build.
  static constexpr __mmask16 all = 0xFFFF;
  static constexpr __mmask32 all32 = 0xFFFFFFFF;
  static __m256 low(vec a) { return _mm512_maskz_extractf32x8_ps(0xFF, a, 0); }
  static __m256 high(vec a) { return _mm512_maskz_extractf32x8_ps(0xFF, a, 1); }
  static vec widen_half(__m256i halfs) { return _mm512_maskz_cvtph_ps(all, halfs); }
  static vec widen_bfloat(__m256i bfloats) {
    return _mm512_castsi512_ps(_mm512_maskz_slli_epi32(all, _mm512_maskz_cvtepu16_epi32(all, bfloats), 16));
  }
};

}  // namespace recycled::inline RECYCLED_ABI::simd
