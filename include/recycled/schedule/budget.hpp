#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>

#include "recycled/schedule/schedule.hpp"
#include "recycled/types/archive.hpp"

namespace recycled::inline RECYCLED_ABI {

/// How much of full attention's bytes schedules may read together, and what loss of attention mass keeps them at it: it
/// rises while they read more and sinks while they read less, so that what they read is the share on average. The
/// layers of one decoder are meant to share one, and so may all sequences of a host. Safe to use from several threads
/// at a time, but for load(); what each of them does then depends on the others.
class Budget {
 public:
  /// share: in (0, 1], of the bytes that full attention would read. Recycled steps alone read (K + 1) / length, and
  /// less than that can't be kept.
  explicit Budget(float share) : share_(share) {
    detail::require(share > 0 && share <= 1, "Budget share", share, "more than 0, up to 1");
  }
  Budget(const Budget&) = delete;
  Budget& operator=(const Budget&) = delete;
  ~Budget() = default;

  float share() const noexcept { return share_; }
  /// The attention mass that a head may have lost before it refreshes; above 1 none does.
  float allowed_loss() const noexcept { return loss_.load(std::memory_order_relaxed); }
  /// The share that has been read so far; 0 before the first step. What lies 2^60 bytes back begins to count less.
  double spent() const noexcept {
    const auto full = static_cast<double>(full_.load(std::memory_order_relaxed));
    return full > 0 ? static_cast<double>(read_.load(std::memory_order_relaxed)) / full : 0;
  }
  /// Writes what was read so far, and the loss that it led to: the states of those that share the budget don't hold it.
  void save(std::ostream& stream) const {
    detail::StateWriter io(stream);
    transfer(io, *this);
    io.finish();
  }
  /// Goes on from there, with the share that this budget has. Throws as LayerAttention::load.
  void load(std::istream& stream) {
    Budget loaded(share_);
    detail::StateReader io(stream);
    transfer(io, loaded);
    loss_ = loaded.loss_.load();
    read_ = loaded.read_.load();
    full_ = loaded.full_.load();
    steps_ = loaded.steps_.load();
    layers_ = loaded.layers_.load();
  }
  /// One step of a layer was made. Throws std::invalid_argument, and counts nothing, for a layer or bytes of none.
  void account(const Cost& cost) {
    detail::require(cost.layer >= 0 && cost.layer <= detail::most_layers, "Cost.layer", cost.layer, "0 to 2^20");
    detail::require(cost.bytes_read < most_bytes, "Cost.bytes_read", cost.bytes_read, "less than 2^61");
    detail::require(cost.bytes_full < most_bytes, "Cost.bytes_full", cost.bytes_full, "less than 2^61");
    constexpr auto relaxed = std::memory_order_relaxed;
    const std::uint64_t read_before = read_.fetch_add(cost.bytes_read, relaxed);
    const std::uint64_t before = full_.fetch_add(cost.bytes_full, relaxed), full = before + cost.bytes_full;
    const double mean = static_cast<double>(full) / static_cast<double>(steps_.fetch_add(1, relaxed) + 1);
    const auto passes = [](std::uint64_t from, std::uint64_t by) {
      return from < most_bytes && from + by >= most_bytes;
    };
    if (passes(before, cost.bytes_full) || passes(read_before, cost.bytes_read)) halve();
    index_t layers = layers_.load(relaxed);
    while (layers <= cost.layer && !layers_.compare_exchange_weak(layers, cost.layer + 1, relaxed)) {
    }
    if (!(mean > 0)) return;
    // The logarithm of the loss is the sum of the bytes that were too many: while it stays within bounds, their mean is
    // 0. Counted in steps of the mean size, so that neither the context nor the number of layers changes its pace.
    const double allowed = static_cast<double>(share_) * static_cast<double>(cost.bytes_full);
    const double excess = (static_cast<double>(cost.bytes_read) - allowed) / (static_cast<double>(share_) * mean);
    const double step = rate / static_cast<double>(std::max(layers, cost.layer + 1)) * excess;
    const auto factor = static_cast<float>(std::exp(step));
    float loss = loss_.load(relaxed);
    while (!loss_.compare_exchange_weak(loss, std::clamp(loss * factor, least_loss, most_loss), relaxed)) {
    }
  }

 private:
  template <class Io, class Self>
  static void transfer(Io& io, Self& budget) {
    float loss = budget.loss_;
    std::uint64_t read = budget.read_, full = budget.full_, steps = budget.steps_;
    index_t layers = budget.layers_;
    io.begin("budget");
    io.plain(loss, read, full, steps);
    io.count(layers, 1, detail::most_layers + 1, "layers that share a budget");
    detail::require(loss >= least_loss && loss <= most_loss, "saved state: loss", loss, "1e-4 to 1.5");
    detail::require(full < 2 * most_bytes && read < 2 * most_bytes, "saved state: bytes of a budget",
                    std::max(full, read), "less than 2^62");
    io.end("the budget");
    if constexpr (Io::loads) {
      budget.loss_ = loss;
      budget.read_ = read;
      budget.full_ = full;
      budget.steps_ = steps;
      budget.layers_ = layers;
      while (budget.full_ >= most_bytes || budget.read_ >= most_bytes) budget.halve();
    }
  }
  /// Sums never overflow: 2^61 bytes are some weeks of a busy host. Of those that account, only the one that comes past
  /// them is here.
  void halve() noexcept {
    for (auto* const sum : {&read_, &full_, &steps_})
      sum->fetch_sub(sum->load(std::memory_order_relaxed) / 2, std::memory_order_relaxed);
  }

  static constexpr std::uint64_t most_bytes = std::uint64_t{1} << 61;
  static constexpr double rate = 0.3;  // for a token in all its layers: settles within some ten of them
  static constexpr float least_loss = 1e-4F;
  static constexpr float most_loss = 1.5F;  // what nobody can lose

  float share_;
  std::atomic<float> loss_ = 0.2F;
  std::atomic<std::uint64_t> read_ = 0;
  std::atomic<std::uint64_t> full_ = 0;
  std::atomic<std::uint64_t> steps_ = 0;
  std::atomic<index_t> layers_ = 1;  // that have been heard of
};

}  // namespace recycled::inline RECYCLED_ABI
