// Logits in fixed point, as a scan of codes writes them down, and what a refresh makes of them.
//
//   logits[r][j]  = unit * (first + r * stride)[j] + anchors[r]
//   log_weight[j] = max over rows r of (logits[r][j] - lse[r])                      CodeWeights, in the same unit
//
// A sketch's logits are good to some tenths, and sixteen bits hold a thousand steps to a nat and more.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numbers>
#include <span>

#include "recycled/kernels/select.hpp"
#include "recycled/simd/math.hpp"

namespace recycled::inline RECYCLED_ABI::kernels {

/// The least unit, in nats: what is finer tells nothing, and 30 nats have to find room.
inline constexpr float finest_unit = 1.0F / 2048;

/// The logits of a KV head's query rows. Rows have room for whole blocks of codes.
template <class Isa>
struct CodeLogits {
  std::int16_t* first = nullptr;
  index_t stride = 0;
  float unit = 0;
  const float* anchors = nullptr;
  float* peaks = nullptr;  ///< the largest logit of each row, relative to its anchor

  std::int16_t* row(index_t r) const { return first + r * stride; }
  float at(index_t r, index_t j) const { return unit * static_cast<float>(row(r)[j]) + anchors[r]; }
  /// The share of row r's attention mass at `positions`; `scratch` has room for them in whole vectors.
  float mass(index_t r, float lse, std::span<const index_t> positions, float* scratch) const {
    const auto count = static_cast<index_t>(positions.size());
    index_t i = 0;
    if constexpr (simd::gathers<Isa>) {
      for (; i + Isa::width <= count; i += Isa::width) {
        const auto steps = Isa::gather_sums(row(r), positions.data() + i);
        Isa::store(scratch + i, Isa::fma(steps, Isa::broadcast(unit), Isa::broadcast(anchors[r])));
      }
    }
    for (; i < count; ++i) scratch[i] = at(r, positions.data()[i]);
    return kernels::mass<Isa>(scratch, count, lse);
  }
  /// Caps those of positions [begin, end): 0 has to be among what the fixed point can say.
  void cap(index_t r, index_t begin, index_t end, float soft_cap) const {
    const auto step = Isa::broadcast(unit), anchor = Isa::broadcast(anchors[r]), per_unit = Isa::broadcast(1 / unit);
    for (index_t j = begin; j < end; j += Isa::width) {
      const auto capped = simd::capped<Isa>(Isa::fma(Isa::load_sums(row(r) + j), step, anchor), soft_cap);
      Isa::store_sums(row(r) + j, Isa::mul(Isa::sub(capped, anchor), per_unit));
    }
  }
};

/// log(sum of exp(logit)) over the logits of a row that come some at a time, to about .03: it only says how the query
/// heads of a group compare.
template <class Isa>
class CodeLogSumExp {
 public:
  CodeLogSumExp() = default;
  explicit CodeLogSumExp(float unit) : unit_(unit) {
    constexpr double per_nat = 128 * std::numbers::log2e;
    double factor = static_cast<double>(unit) * per_nat * 32768;
    for (; factor > 32767 && doublings_ < 16; ++doublings_) factor /= 2;
    factor_ = static_cast<std::int16_t>(std::lrint(std::min(factor, 32767.0)));
  }

  void add(std::span<const std::int16_t> logits) {
    const auto count = static_cast<index_t>(logits.size()), whole = count / Isa::code_lanes * Isa::code_lanes;
    const std::int16_t most = largest_of(logits);
    if (most > largest_) {
      sum_ *= std::exp(unit_ * static_cast<float>(largest_ - most));
      largest_ = most;
    }
    // The upper half of a float's bits is about its logarithm: 128 (log2 x + 127), if a little is taken off. Not below
    // what is a normal number: others are slow to add.
    const auto factor = Isa::broadcast_sums16(factor_), one = Isa::broadcast_sums16(127 * 128 - 6);
    const auto shift = Isa::multiply_high(Isa::broadcast_sums16(largest_), factor);
    const auto least = Isa::broadcast_sums16(128);
    auto sums = Isa::zero();
    for (index_t i = 0; i < whole; i += Isa::code_lanes) {
      auto bits = Isa::sub_saturated(Isa::multiply_high(Isa::load_sums16(logits.data() + i), factor), shift);
      for (int d = 0; d < doublings_; ++d) bits = Isa::add_saturated(bits, bits);
      sums = Isa::add_bfloats(sums, Isa::max(Isa::add_saturated(bits, one), least));
    }
    sum_ += Isa::reduce_add(sums);
    for (index_t i = whole; i < count; ++i) sum_ += std::exp(unit_ * static_cast<float>(logits.data()[i] - largest_));
  }
  /// Relative to the row's anchor. (The largest one's share is 1, however it was rounded.)
  float value() const { return largest() + std::log(sum_ < 1 ? 1.0F : sum_); }
  float largest() const { return unit_ * static_cast<float>(largest_); }

 private:
  static std::int16_t largest_of(std::span<const std::int16_t> logits) {
    std::int16_t lanes[Isa::code_lanes];
    std::fill_n(lanes, Isa::code_lanes, logits.front());
    auto most = Isa::load_sums16(lanes);
    const std::int16_t* logit = logits.data();
    const std::int16_t* const end = logit + logits.size();
    for (; end - logit >= Isa::code_lanes; logit += Isa::code_lanes) most = Isa::max(most, Isa::load_sums16(logit));
    Isa::store(lanes, most);
    for (std::int16_t* lane = lanes; logit != end; ++lane, ++logit) *lane = std::max(*lane, *logit);
    return *std::max_element(lanes, lanes + Isa::code_lanes);
  }

  float unit_ = 0;
  float sum_ = 0;
  int doublings_ = 0;  // of what is multiplied by factor_
  std::int16_t factor_ = 0;
  std::int16_t largest_ = std::numeric_limits<std::int16_t>::min();
};

/// The largest log-weight of the group at every position. Those that lie further below the largest of all than there is
/// room for are equal.
struct CodeWeights {
  /// Ranks that are above all others.
  static constexpr std::int16_t above_all = std::numeric_limits<std::int16_t>::max();

  std::int16_t* first = nullptr;  ///< room for whole blocks of codes
  float unit = 0;
  float zero = 0;           ///< what 0 stands for
  std::int16_t favour = 0;  ///< a factor of two; for adding it there is always room

  float at(index_t j) const { return unit * static_cast<float>(first[j]) + zero; }
  /// There has to be room.
  void add(index_t j, int steps) const { first[j] = static_cast<std::int16_t>(first[j] + steps); }

  /// Of `length` positions, to `to`; `lse` are numbers. Relative to the anchors, because these may be so large that a
  /// float beside them is good to no more than many steps, for which there would be no room.
  template <class Isa>
  static CodeWeights of(const CodeLogits<Isa>& logits, std::span<const float> lse, index_t length, std::int16_t* to) {
    const auto rows = static_cast<index_t>(lse.size());
    float top = -std::numeric_limits<float>::infinity();
    for (index_t r = 0; r < rows; ++r) top = std::max(top, logits.peaks[r] - (lse.data()[r] - logits.anchors[r]));
    const float unit = logits.unit;
    const auto favour = static_cast<std::int16_t>(std::lrint(std::numbers::ln2_v<float> / unit));
    constexpr index_t stretch = 2048;  // of the result, which stays in the first-level cache
    const float highest = above_all - 8.0F - static_cast<float>(favour);
    for (index_t begin = 0; begin < length; begin += stretch) {
      const index_t end = std::min(begin + stretch, length);
      for (index_t r = 0; r < rows; ++r) {
        // In two halves: what is to be added may be more than a lane can hold.
        const float shift = highest - ((lse.data()[r] - logits.anchors[r]) + top) / unit;
        const long whole = std::lrint(std::clamp(shift, -65000.0F, 65000.0F));
        const auto half = Isa::broadcast_sums16(static_cast<std::int16_t>(whole / 2));
        const auto rest = Isa::broadcast_sums16(static_cast<std::int16_t>(whole - whole / 2));
        for (index_t j = begin; j < end; j += Isa::code_lanes) {
          const auto weights = Isa::add_saturated(Isa::add_saturated(Isa::load_sums16(logits.row(r) + j), half), rest);
          Isa::store(to + j, r == 0 ? weights : Isa::max(weights, Isa::load_sums16(to + j)));
        }
      }
    }
    return {to, unit, top - unit * highest, favour};
  }
};

}  // namespace recycled::inline RECYCLED_ABI::kernels
