// AArch64 NEON: four floats, thirty-two registers.
#pragma once

#include <arm_neon.h>

#include "recycled/simd/generic.hpp"

namespace recycled::inline RECYCLED_ABI::simd {

/// What each operation means: simd/generic.hpp.
struct neon {
  static constexpr const char* name = "neon";
  static constexpr int width = 4;
  // 4 x 4 sums, 4 keys or values, 1 query or weight: 21 of 32 registers.
  static constexpr int most_score_rows = 4;
  static constexpr int most_value_rows = 4;
  static constexpr int score_positions(int rows) { return rows <= 2 ? 8 : 4; }
  static constexpr int value_vectors(int rows) { return rows <= 2 ? 8 : 4; }

  using vec = float32x4_t;

  static vec broadcast(float x) { return vdupq_n_f32(x); }
  static vec zero() { return vdupq_n_f32(0); }
  static vec load(const float* p) { return vld1q_f32(p); }
  static vec load(const half* p) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(reinterpret_cast<const std::uint16_t*>(p))));
  }
  static vec load(const bfloat16* p) {
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(reinterpret_cast<const std::uint16_t*>(p)), 16));
  }
  static vec load_quants(const std::int8_t* p) {
    std::int32_t four = 0;
    __builtin_memcpy(&four, p, sizeof four);
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four))))));
  }
  static vec broadcast(half x) { return vdupq_n_f32(static_cast<float>(x)); }
  static void store(float* p, vec a) { vst1q_f32(p, a); }
  static void store(half* p, vec a) {
    vst1_u16(reinterpret_cast<std::uint16_t*>(p), vreinterpret_u16_f16(vcvt_f16_f32(a)));
  }
  static void store(bfloat16* p, vec a) {
    const uint32x4_t bits = vreinterpretq_u32_f32(a);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint32x4_t rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7FFF)));
    const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x400000));  // what rounding makes of a NaN may be none
    const uint32x4_t kept = vbslq_u32(vceqq_f32(a, a), rounded, quiet);
    vst1_u16(reinterpret_cast<std::uint16_t*>(p), vshrn_n_u32(kept, 16));
  }

  static vec add(vec a, vec b) { return vaddq_f32(a, b); }
  static vec sub(vec a, vec b) { return vsubq_f32(a, b); }
  static vec mul(vec a, vec b) { return vmulq_f32(a, b); }
  static vec div(vec a, vec b) { return vdivq_f32(a, b); }
  static vec fma(vec a, vec b, vec c) { return vfmaq_f32(c, a, b); }
  static vec max(vec a, vec b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
  static vec min(vec a, vec b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
  static vec select_less(vec x, vec y, vec a, vec b) { return vbslq_f32(vcltq_f32(x, y), a, b); }
  static unsigned greater_mask(vec a, vec b) {
    const uint32x4_t bit = {1, 2, 4, 8};
    return vaddvq_u32(vandq_u32(vcgtq_f32(a, b), bit));
  }
  static vec round(vec a) { return vrndnq_f32(a); }
  static vec scale_by_power_of_2(vec a, vec n) {
    const int32x4_t exponent = vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127));
    return vmulq_f32(a, vreinterpretq_f32_s32(vshlq_n_s32(exponent, 23)));
  }

  static float reduce_add(vec a) { return vaddvq_f32(a); }
  static float reduce_max(vec a) { return vmaxvq_f32(a); }
  static void store_sums(float* sums, vec a, vec b, vec c, vec d) {
    vst1q_f32(sums, vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d)));
  }

  // 2 vectors of positions x 4 rows: 8 sums, 8 codes, 4 weights: 20 of 32 registers.
  static constexpr int code_lanes = 8;
  static constexpr int code_parts = 2;
  using sums16 = int16x8_t;
  struct codes {
    int16x8_t at[4];
  };
  using code_weights = codes;
  static codes load_codes(const std::uint8_t* p) {
    const uint16x8_t v = vreinterpretq_u16_u8(vld1q_u8(p)), low = vdupq_n_u16(15);
    const auto part = [](uint16x8_t x) { return vreinterpretq_s16_u16(x); };
    return {{part(vandq_u16(v, low)), part(vandq_u16(vshrq_n_u16(v, 8), low)), part(vandq_u16(vshrq_n_u16(v, 4), low)),
             part(vshrq_n_u16(v, 12))}};
  }
  static code_weights load_code_weights(const std::int8_t* p) {
    return {{vdupq_n_s16(p[0]), vdupq_n_s16(p[1]), vdupq_n_s16(p[4]), vdupq_n_s16(p[5])}};
  }
  static sums16 zero_sums16() { return vdupq_n_s16(0); }
  static sums16 add_products(sums16 sums, const codes& c, const code_weights& w) {
    sums = vmlaq_s16(vmlaq_s16(sums, c.at[0], w.at[0]), c.at[1], w.at[1]);
    return vmlaq_s16(vmlaq_s16(sums, c.at[2], w.at[2]), c.at[3], w.at[3]);
  }
  static void store(std::int16_t* p, sums16 sums) { vst1q_s16(p, sums); }
  static sums16 load_sums16(const std::int16_t* p) { return vld1q_s16(p); }
  static sums16 broadcast_sums16(std::int16_t x) { return vdupq_n_s16(x); }
  static sums16 max(sums16 a, sums16 b) { return vmaxq_s16(a, b); }
  static sums16 add_saturated(sums16 a, sums16 b) { return vqaddq_s16(a, b); }
  static sums16 sub_saturated(sums16 a, sums16 b) { return vqsubq_s16(a, b); }
  static sums16 multiply_high(sums16 a, sums16 b) { return vqrdmulhq_s16(a, b); }
  static unsigned greater_mask(sums16 a, sums16 b) {
    const uint16x8_t bit = {1, 2, 4, 8, 16, 32, 64, 128};
    return vaddvq_u16(vandq_u16(vcgtq_s16(a, b), bit));
  }
  static vec add_bfloats(vec sum, sums16 bits) {
    const uint32x4_t pairs = vreinterpretq_u32_s16(bits);
    const vec even = vreinterpretq_f32_u32(vshlq_n_u32(pairs, 16));
    return vaddq_f32(sum, vaddq_f32(even, vreinterpretq_f32_u32(vandq_u32(pairs, vdupq_n_u32(0xFFFF0000)))));
  }
  static vec load_sums(const std::int16_t* p) { return vcvtq_f32_s32(vmovl_s16(vld1_s16(p))); }
  static void store_sums(std::int16_t* p, vec a) { vst1_s16(p, vqmovn_s32(vcvtnq_s32_f32(a))); }
};

}  // namespace recycled::inline RECYCLED_ABI::simd
