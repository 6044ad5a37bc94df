// What follows a full step's attention: its logits become scores, scores choose, and the choice is compared with the
// old.
#pragma once

#include <span>

#include "recycled/cache/recycle_cache.hpp"
#include "recycled/kernels/code_scan.hpp"
#include "recycled/kernels/score_tile.hpp"
#include "recycled/kernels/select.hpp"
#include "recycled/selection/selection.hpp"

namespace recycled::inline RECYCLED_ABI {

/// Scratch for the logits of a step, a row of positions for each query head, and the choice made from them. KV heads
/// work on disjoint parts, so they may run in parallel.
class ScoreBoard {
  using Isa = simd::native;

 public:
  /// Room for a step over `length` positions of a layer of this shape, which keeps up to `capacity` of them. At least
  /// doubles when it grows.
  void reserve(const Shape& shape, index_t capacity, index_t length, index_t axis_floats) {
    group_ = shape.group();
    capacity_ = capacity;
    room_ = length / 64 * 64 + 64;
    grow(scores_, detail::checked_product(shape.kv_heads * (group_ + 2), room_, "score memory"));
    if (grow(chosen_bits_, shape.kv_heads * (room_ / 64)))
      std::fill(chosen_bits_.begin(), chosen_bits_.end(), std::uint64_t{0});
    grow(chosen_, detail::checked_product(shape.kv_heads, capacity, "recycle cache size"));
    grow(old_mass_, shape.query_heads);
    if (axis_floats == 0) return;
    grow(sketched_, (shape.query_heads + shape.kv_heads) * room_);
    grow(axes_, shape.kv_heads * axis_floats);
  }

  /// Where a step puts the logits of KV head `g`,
  kernels::LogitSink sink(index_t g) noexcept { return {row(g, 0), room_}; }
  kernels::StepLogits<Isa> logits(index_t g) noexcept { return {row(g, 0), room_}; }
  /// and where a sketch puts its own: rows of `stride()`, for whole blocks of codes.
  std::int16_t* sketched(index_t g) noexcept { return sketched_.data() + g * (group_ + 1) * room_; }
  index_t stride() const noexcept { return room_; }
  /// and where it finds its axes.
  float* axes() noexcept { return axes_.data(); }

  /// The scores of one query are those of KV head g's logits; `visible` limits them.
  void score(index_t g, std::span<const float> lse, const Visible& visible) noexcept {
    for (index_t r = 0; r < group_; ++r) hide(row(g, r), visible);
    logits(g).log_weights(lse, visible.window.end, log_weights(g));
  }
  /// Takes the scores of query `i` of `n` prompt queries, which saw `seen` positions, into a mean over all of them;
  /// after the last, which saw `total`, that mean is what choose() goes by.
  void average(index_t g, index_t seen, index_t total, index_t i, index_t n) noexcept {
    float* const mean = ranks(g);
    if (i == 0) std::fill(mean, mean + total, 0.0F);
    for (index_t j = 0; j < seen; ++j) mean[j] += std::exp(log_weights(g)[j]) / static_cast<float>(n);
    if (i + 1 < n) return;
    for (index_t j = 0; j < total; ++j) log_weights(g)[j] = std::log(mean[j]);
  }

  /// Replaces the set of KV head `g` by what `selection` makes of the scores, the mean of those of so many queries of
  /// the prompt, or of a full step. `view` holds at least the positions seen.
  template <Scalar T, Scalar R, Selection Keep>
  void choose(index_t g, Keep& selection, const Visible& visible, const KvView<T>& view, bool of_prompt,
              RecycleCache<R>& cache, index_t queries = 1) noexcept {
    const index_t length = visible.window.end;
    const std::span<float> ranked = rank(g, selection, length, of_prompt, queries);
    if (visible.window.begin > visible.sinks.end) {
      // NaN ranks below everything: what can't be seen comes after whatever the selection made of what can.
      for (float& rank : ranked) rank = detail::sane_rank(rank);
    }
    for (index_t j = visible.sinks.end; j < visible.window.begin; ++j)
      ranked.data()[j] = std::numeric_limits<float>::quiet_NaN();
    rebuild(g, ranked, std::min(capacity_, visible.size()), view, length - 1, cache);
  }
  /// The same for a step that attends to its choice alone, by the scores of all positions of `view`: its own token is
  /// part of it.
  template <Scalar T, Scalar R, Selection Keep>
  void choose_with_own(index_t g, Keep& selection, const KvView<T>& view, RecycleCache<R>& cache) noexcept {
    rebuild_with_own(g, rank(g, selection, view.length, false, 1), view, cache);
  }
  /// The same by the logits of a sketch, which says little of the first positions.
  template <Scalar T, Scalar R, Selection Keep>
  void choose(index_t g, Keep& selection, const kernels::CodeLogits<Isa>& sketched, std::span<const float> lse,
              const KvView<T>& view, RecycleCache<R>& cache) noexcept {
    const index_t length = view.length;
    const kernels::CodeWeights weights = sketched_weights(sketched, lse, length);
    if (!detail::ranks_are_scores(selection)) {
      for (index_t j = 0; j < length; ++j) log_weights(g)[j] = weights.at(j);
      const std::span<float> ranked = rank(g, selection, length, false, 1);
      prefer_first(ranked, newcomer_rank);
      return rebuild_with_own(g, ranked, view, cache);
    }
    // A sketch's scores are good to some tenths, and a row that comes has to be copied: so a row that is held gives way
    // only to one of twice its weight.
    cache.close_gap(g);
    for (const index_t p : cache.positions(g)) weights.add(p, weights.favour);
    const kernels::PositionBits chosen = mark_by(g, weights, length);
    for (const index_t p : cache.positions(g)) weights.add(p, -weights.favour);
    const auto rank_of = [&](index_t p) {
      return p < first_positions() || p == length - 1 ? newcomer_rank : weights.at(p);
    };
    cache.rebuild(g, chosen, sketched_count(length), rank_of, view, length - 1);
  }

  /// The set of KV head `g` for the step of the token at `own` is what the host hands over: `scores` of all positions
  /// before it, of which the highest count.
  template <Scalar T, Scalar R>
  void take_scores(index_t g, std::span<const float> scores, const Visible& visible, index_t own, const KvView<T>& view,
                   RecycleCache<R>& cache) noexcept {
    const std::span<float> ranked(ranks(g), static_cast<std::size_t>(own));
    std::transform(scores.begin(), scores.begin() + own, ranked.begin(), detail::sane_rank);
    for (index_t j = visible.sinks.end; j < std::min(visible.window.begin, own); ++j)
      ranked.data()[j] = std::numeric_limits<float>::quiet_NaN();
    rebuild(g, ranked, std::min(capacity_, visible.size() - 1), view, own, cache);
  }
  /// The same by positions, which are checked: those that it may see are its set, and the first one counts most.
  template <Scalar T, Scalar R>
  void take_positions(index_t g, std::span<const index_t> positions, const Visible& visible, index_t own,
                      const KvView<T>& view, RecycleCache<R>& cache) noexcept {
    const std::span<float> ranked(ranks(g), static_cast<std::size_t>(own));
    const kernels::PositionBits chosen = bits(g, own);
    index_t count = 0;
    for (std::size_t i = 0; i < positions.size(); ++i) {
      const index_t p = positions[i];
      if (p < 0 || p == own || !visible.contains(p)) continue;
      ranked.data()[p] = -static_cast<float>(i);
      chosen.insert(p);
      ++count;
    }
    cache.rebuild(g, chosen, count, RankOf{ranked}, view, own);
  }
  /// One of these positions of KV head `g` that comes twice, or -1; negative ones don't count.
  index_t repeated(index_t g, std::span<const index_t> positions) noexcept {
    index_t twice = -1;
    const kernels::PositionBits seen = bits(g, room_);
    for (const index_t p : positions) {
      if (p < 0) continue;
      if (seen.contains(p)) twice = p;
      seen.insert(p);
    }
    for (const index_t p : positions) {
      if (p >= 0) seen.erase(p);
    }
    return twice;
  }

  /// Before a choice: notes the share of every query row's attention mass that the set and the new token at `own` hold.
  template <Scalar R, class Logits>
  void measure_old(index_t g, const Logits& by, std::span<const float> lse, index_t own,
                   RecycleCache<R>& cache) noexcept {
    cache.close_gap(g);
    for (index_t r = 0; r < group_; ++r) {
      old_mass_[g * group_ + r] =
          by.mass(r, lse.data()[r], cache.positions(g), ranks(g)) + by.mass(r, lse.data()[r], {&own, 1}, ranks(g));
    }
  }
  /// After it: what was noted relative to what the new set holds, the least over the group. See Refresh::retained_mass.
  template <Scalar R, class Logits>
  float retained_mass(index_t g, const Logits& by, std::span<const float> lse, const RecycleCache<R>& cache) noexcept {
    float least = 1;
    for (index_t r = 0; r < group_; ++r) {
      const float share = old_mass_[g * group_ + r] / by.mass(r, lse.data()[r], cache.positions(g), ranks(g));
      least = share < least ? share : least;
    }
    return least;
  }

  /// A float for each query row of KV head `g`, between a measurement and the next.
  std::span<float> scratch_of(index_t g) noexcept {
    return {old_mass_.data() + g * group_, static_cast<std::size_t>(group_)};
  }
  /// After a choice by a step's scores: the attention mass of what a sketch would have chosen, relative to that of the
  /// choice, the least over the group. `lse` is the sketch's, `true_lse` the step's.
  template <Scalar R>
  float agreement(index_t g, const kernels::CodeLogits<Isa>& sketched, std::span<const float> lse,
                  std::span<const float> true_lse, index_t length, const RecycleCache<R>& cache) noexcept {
    const kernels::CodeWeights weights = sketched_weights(sketched, lse, length);
    const std::span<index_t> chosen(chosen_.data() + g * capacity_, static_cast<std::size_t>(sketched_count(length)));
    mark_by(g, weights, length).drain(chosen.data());
    float least = 1;
    for (index_t r = 0; r < group_; ++r) {
      const float share = logits(g).mass(r, true_lse.data()[r], chosen, ranks(g)) /
                          logits(g).mass(r, true_lse.data()[r], cache.positions(g), ranks(g));
      least = share < least ? share : least;
    }
    return least;
  }

  /// Tells `selection` what a recycled step saw. The logits stand slot by slot or, if the step read the host's cache
  /// because nothing was missing from the set, by position.
  template <Scalar R, Selection Keep>
  void attended(index_t g, std::span<const float> lse, bool by_position, Keep& selection,
                RecycleCache<R>& cache) noexcept {
    const std::span<const index_t> positions = cache.positions(g);
    float* const weights = log_weights(g);
    if (by_position) {
      for (std::size_t s = 0; s < positions.size(); ++s) {
        kernels::group_log_weights<Isa>(row(g, 0) + positions[s], room_, lse, 1, weights + s);
      }
    } else {
      logits(g).log_weights(lse, static_cast<index_t>(positions.size()), weights);
    }
    selection.attended(Attended{positions, {weights, positions.size()}}, cache.ranks(g));
    for (float& rank : cache.ranks(g)) rank = detail::sane_rank(rank);
  }

 private:
  float* row(index_t g, index_t r) noexcept { return scores_.data() + (g * (group_ + 2) + r) * room_; }
  float* log_weights(index_t g) noexcept { return row(g, group_); }
  float* ranks(index_t g) noexcept { return row(g, group_ + 1); }
  /// An empty set of positions, to be left empty.
  kernels::PositionBits bits(index_t g, index_t length) noexcept {
    return {chosen_bits_.data() + g * (room_ / 64), length};
  }
  /// Ranks as a cache asks for them.
  struct RankOf {
    std::span<const float> ranks;
    float operator()(index_t p) const noexcept { return ranks.data()[p]; }
  };
  template <Scalar T, Scalar R>
  void rebuild(index_t g, std::span<const float> ranked, index_t count, const KvView<T>& view, index_t own,
               RecycleCache<R>& cache) noexcept {
    const kernels::PositionBits chosen = bits(g, static_cast<index_t>(ranked.size()));
    kernels::mark_largest(ranked, count, chosen);
    cache.rebuild(g, chosen, count, RankOf{ranked}, view, own);
  }
  template <Scalar T, Scalar R>
  void rebuild_with_own(index_t g, std::span<float> ranked, const KvView<T>& view, RecycleCache<R>& cache) noexcept {
    ranked.back() = std::numeric_limits<float>::infinity();
    const kernels::PositionBits chosen = mark_with_last(g, std::span<const float>(ranked));
    ranked.back() = newcomer_rank;
    cache.rebuild(g, chosen, sketched_count(view.length), RankOf{ranked}, view, view.length - 1);
  }
  kernels::CodeWeights sketched_weights(const kernels::CodeLogits<Isa>& logits, std::span<const float> lse,
                                        index_t length) const noexcept {
    return kernels::CodeWeights::of(logits, lse, length, logits.row(group_));
  }
  /// What `selection` makes of the log-weights.
  template <Selection Keep>
  std::span<float> rank(index_t g, Keep& selection, index_t length, bool of_prompt, index_t queries) noexcept {
    const std::span<const float> scores(log_weights(g), static_cast<std::size_t>(length));
    if (detail::ranks_are_scores(selection)) return {log_weights(g), scores.size()};
    const std::span<float> ranked(ranks(g), scores.size());
    selection.rank(Scores{scores, of_prompt, queries}, ranked);
    return ranked;
  }
  /// A sketched step attends to the first positions, too, where attention rests: they lie so far from other keys that a
  /// sketch knows little of them.
  template <class N>
  void prefer_first(std::span<N> ranks, N at_least) const noexcept {
    for (N& rank : ranks.first(static_cast<std::size_t>(first_positions()))) rank = rank >= at_least ? rank : at_least;
  }
  index_t first_positions() const noexcept { return std::min(index_t{4}, capacity_ / 8); }
  index_t sketched_count(index_t length) const noexcept { return std::min(capacity_, length); }
  kernels::PositionBits mark_by(index_t g, const kernels::CodeWeights& weights, index_t length) noexcept {
    const std::span<std::int16_t> ranked(weights.first, static_cast<std::size_t>(length));
    prefer_first(ranked, kernels::CodeWeights::above_all);
    ranked.back() = kernels::CodeWeights::above_all;  // its own token is part of what a sketched step attends to
    return mark_with_last(g, std::span<const std::int16_t>(ranked));
  }
  template <class N>
  kernels::PositionBits mark_with_last(index_t g, std::span<const N> ranked) noexcept {
    const auto length = static_cast<index_t>(ranked.size());
    const kernels::PositionBits chosen = bits(g, length);
    kernels::mark_largest(ranked, sketched_count(length), chosen);
    if (!chosen.contains(length - 1)) {  // others rank as high
      chosen.erase(chosen.last());
      chosen.insert(length - 1);
    }
    return chosen;
  }
  static void hide(float* values, const Visible& visible) noexcept {
    if (visible.window.begin > visible.sinks.end) {
      std::fill(values + visible.sinks.end, values + visible.window.begin, -std::numeric_limits<float>::infinity());
    }
  }

  template <class N>
  static bool grow(Array<N>& array, index_t size) {
    if (size <= array.size()) return false;
    array = Array<N>(std::max(size, 2 * array.size()));
    return true;
  }

  index_t group_ = 1;
  index_t capacity_ = 0;
  index_t room_ = 0;
  Array<float> scores_;               // [kv_heads, group + 2, room]: logits, then log-weights and ranks
  Array<std::int16_t> sketched_;      // [kv_heads, group + 1, room]: logits and log-weights of layers with a sketch
  Array<float> axes_;                 // [kv_heads, KeySketch::axis_floats]: for them, too
  Array<std::uint64_t> chosen_bits_;  // [kv_heads, room / 64], zeros between choices
  Array<index_t> chosen_;             // [kv_heads, capacity]
  Array<float> old_mass_;             // [query_heads]
};

}  // namespace recycled::inline RECYCLED_ABI
