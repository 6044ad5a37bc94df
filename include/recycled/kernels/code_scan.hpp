// Keys as codes of four bits, and all their logits for a few query rows: the inner loop of a sketched refresh.
//
//   sums[r][j]   = sum over coordinates c of weights[r][c] * codes[j][c]
//   logits[r][j] = round(factors[r] * sums[r][j]) + offsets[r][j's stretch]        in the fixed point of CodeLogits
//
// Codes 0 to 15 times signed bytes, summed up exactly in 16 bits, which is also what comes out: half of what floats
// would be to write down and to read again, twice as many to a vector, and the same on every instruction set. 32
// positions stand together, four coordinates after four, so that a vector of codes is many positions' and a weight is
// the same for all of its lanes: no sum ever crosses lanes. A code is unpacked once for all query rows.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "recycled/kernels/code_logits.hpp"
#include "recycled/kernels/rows.hpp"

namespace recycled::inline RECYCLED_ABI::kernels {

/// Positions whose codes stand together.
inline constexpr index_t code_block = 32;

/// Positions that share a bias.
inline constexpr index_t code_stretch = 128;

/// Bytes of a block's codes; `coordinates` is a multiple of 4.
constexpr index_t code_block_bytes(index_t coordinates) { return code_block * coordinates / 2; }
/// Bytes that the codes of `positions` positions take.
constexpr index_t code_bytes(index_t positions, index_t coordinates) {
  return (positions + code_block - 1) / code_block * code_block_bytes(coordinates);
}

/// Writes the codes of a position's coordinates c to c + 3, given as code 0 + 16 code 2 + 256 code 1 + 4096 code 3.
inline void set_codes(std::uint8_t* codes, index_t coordinates, index_t position, index_t c, unsigned four) {
  std::uint8_t* const at = codes + position / code_block * code_block_bytes(coordinates) + c / 4 * 2 * code_block +
                           position % code_block * 2;
  at[0] = static_cast<std::uint8_t>(four & 255);
  at[1] = static_cast<std::uint8_t>(four >> 8);
}

/// Calls f(first, bytes) for the runs of memory in which the codes of positions [begin, end) lie; a block begins at
/// `begin`.
template <class Codes, class F>
void for_each_code_run(Codes* codes, index_t coordinates, index_t begin, index_t end, const F& f) {
  const index_t whole = end / code_block * code_block;
  if (whole > begin) f(codes + code_bytes(begin, coordinates), code_bytes(whole - begin, coordinates));
  for (index_t four = 0; end > whole && four < coordinates / 4; ++four) {
    f(codes + code_bytes(whole, coordinates) + four * 2 * code_block, (end - whole) * 2);
  }
}

/// Bytes that the weights of a query row take: each stands twice.
constexpr index_t code_weight_bytes(index_t coordinates) { return 2 * coordinates; }

/// Rounds a query row's weights to bytes, as finely as sums in 16 bits allow, and returns what a logit is to be
/// multiplied by. NaN if a weight is no finite number.
inline float round_weights(const float* exact, index_t coordinates, std::int8_t* weights) {
  double largest = 0;
  double sum = 0;
  for (index_t c = 0; c < coordinates; ++c) {
    const double magnitude = std::abs(static_cast<double>(exact[c]));
    largest = magnitude > largest ? magnitude : largest;
    sum += magnitude;
  }
  // 15 times the sum of the rounded weights, each of which may have grown by a half, has to stay below 2^15.
  const double room = 32767.0 / 15 - static_cast<double>(coordinates) / 2;
  const double scale = std::max(largest / 127, sum / room);
  const bool sound = sum < std::numeric_limits<double>::infinity() && scale > 0;
  for (index_t c = 0; c < coordinates; ++c) {
    const auto weight =
        sound ? static_cast<std::int8_t>(std::lrint(static_cast<double>(exact[c]) / scale)) : std::int8_t{0};
    weights[c / 4 * 8 + c % 4 / 2 * 4 + c % 2] = weight;
    weights[c / 4 * 8 + c % 4 / 2 * 4 + c % 2 + 2] = weight;
  }
  return sound || sum == 0 ? static_cast<float>(scale) : std::numeric_limits<float>::quiet_NaN();
}

/// How the sums of a few query rows become logits: those of row r are scales[r] * (a sum) + biases[r][stretch]. Row r's
/// weights start at weights + r * code_weight_bytes, its biases and offsets at r * stretches.
struct CodeRows {
  const std::int8_t* weights = nullptr;
  const float* scales = nullptr;
  const float* biases = nullptr;
  index_t stretches = 0;
  // What fix_point() finds out
  float* anchors = nullptr;
  std::int16_t* factors = nullptr;
  std::int16_t* offsets = nullptr;

  /// Finds the fixed point in which all logits of `rows` rows have room, whatever the codes, and 0 too if they are to
  /// be capped, and returns its unit. NaN, if a scale or a bias is no finite number: then there are no logits.
  float fix_point(index_t rows, index_t coordinates, bool with_zero) const {
    float unit = finest_unit;
    for (index_t r = 0; r < rows; ++r) {
      int least = 0;  // of what sums may be, twice: each weight is there twice
      int most = 0;
      for (index_t i = r * code_weight_bytes(coordinates); i < (r + 1) * code_weight_bytes(coordinates); ++i)
        (weights[i] < 0 ? least : most) += 15 * weights[i];
      float low = biases[r * stretches], high = low, odd = 0 * scales[r];
      for (index_t s = r * stretches; s < (r + 1) * stretches; ++s) {
        low = std::min(low, biases[s]);
        high = std::max(high, biases[s]);
        odd += 0 * biases[s];  // what is no number stays
      }
      low += scales[r] * static_cast<float>(least) / 2;
      high += scales[r] * static_cast<float>(most) / 2;
      if (with_zero) {
        low = std::min(low, 0.0F);
        high = std::max(high, 0.0F);
      }
      if (!(odd == 0 && high - low < std::numeric_limits<float>::infinity()))
        return std::numeric_limits<float>::quiet_NaN();
      anchors[r] = low / 2 + high / 2;
      unit = std::max({unit, scales[r], (high - low) / 64000});
    }
    for (index_t r = 0; r < rows; ++r) {
      factors[r] = static_cast<std::int16_t>(std::min(std::lrint(scales[r] / unit * 32768), 32767L));
      for (index_t s = r * stretches; s < (r + 1) * stretches; ++s)
        offsets[s] = static_cast<std::int16_t>(std::lrint((biases[s] - anchors[r]) / unit));
    }
    return unit;
  }
};

/// The module comment's logits of Rows query rows from `row` on, for whole blocks of the positions [begin, end).
template <class Isa, int Rows>
void scan_rows(const std::uint8_t* codes, index_t begin, index_t end, index_t coordinates, const CodeRows& rows,
               index_t row, const CodeLogits<Isa>& to) {
  constexpr index_t lanes = Isa::code_lanes;
  constexpr int parts = Isa::code_parts;
  constexpr index_t ahead = index_t{1} << 14;  // bytes: what a stretch of scan_codes() takes; less is too late
  static_assert(code_block % (lanes * parts) == 0);
  const std::int8_t* const weights = rows.weights + row * code_weight_bytes(coordinates);
  for (index_t some = begin; some < end; some += code_block) {
    const std::uint8_t* const at = codes + some / code_block * code_block_bytes(coordinates);
    const std::int16_t* const offsets = rows.offsets + row * rows.stretches + some / code_stretch;
    for (index_t line = 0; line < code_block_bytes(coordinates); line += 64) simd::prefetch_l2(at, ahead + line);
    for (index_t first = 0; first < code_block; first += lanes * parts) {
      typename Isa::sums16 sums[Rows][parts];
      simd::unroll<Rows>([&](auto r) { simd::unroll<parts>([&](auto i) { sums[r][i] = Isa::zero_sums16(); }); });
      for (index_t c = 0; c < coordinates; c += 4) {
        const std::uint8_t* const four = at + c / 4 * 2 * code_block + first * 2;
        typename Isa::codes unpacked[parts];
        simd::unroll<parts>([&](auto i) { unpacked[i] = Isa::load_codes(four + i * lanes * 2); });
        simd::unroll<Rows>([&](auto r) {
          const auto weight = Isa::load_code_weights(weights + r * code_weight_bytes(coordinates) + c * 2);
          simd::unroll<parts>([&](auto i) { sums[r][i] = Isa::add_products(sums[r][i], unpacked[i], weight); });
        });
      }
      simd::unroll<Rows>([&](auto r) {
        const auto factor = Isa::broadcast_sums16(rows.factors[row + r]);
        const auto offset = Isa::broadcast_sums16(offsets[r * rows.stretches]);
        simd::unroll<parts>([&](auto i) {
          Isa::store(to.row(row + r) + some + first + i * lanes,
                     Isa::add_saturated(Isa::multiply_high(sums[r][i], factor), offset));
        });
      });
    }
  }
}

/// All logits with their peaks, capped if there is a cap, and while they are in the cache every row's log-sum-exp.
template <class Isa>
void scan_codes(const std::uint8_t* codes, index_t positions, index_t coordinates, const CodeRows& rows, float soft_cap,
                const CodeLogits<Isa>& to, std::span<float> lse) {
  constexpr index_t stretch = 32 * code_block;
  static_assert(stretch % code_stretch == 0 && code_stretch % code_block == 0);
  for_row_tiles<4>(static_cast<index_t>(lse.size()), [&](auto tile, index_t r) {
    CodeLogSumExp<Isa> sums[tile()];
    for (auto& sum : sums) sum = CodeLogSumExp<Isa>(to.unit);
    for (index_t begin = 0; begin < positions; begin += stretch) {
      const index_t end = std::min(begin + stretch, positions);
      scan_rows<Isa, tile()>(codes, begin, end, coordinates, rows, r, to);
      for (index_t i = 0; i < tile(); ++i) {
        if (soft_cap > 0) to.cap(r + i, begin, end, soft_cap);
        sums[i].add({to.row(r + i) + begin, to.row(r + i) + end});
      }
    }
    for (index_t i = 0; i < tile(); ++i) {
      lse.data()[r + i] = to.anchors[r + i] + sums[i].value();
      to.peaks[r + i] = sums[i].largest();
    }
  });
}

}  // namespace recycled::inline RECYCLED_ABI::kernels
