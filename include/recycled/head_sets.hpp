// What the KV heads of a layer hold for the steps to come, and how one set follows another.
#pragma once

#include <algorithm>
#include <cmath>
#include <optional>
#include <span>
#include <vector>

#include "recycled/score_board.hpp"
#include "recycled/sketch/key_sketch.hpp"
#include "recycled/types/layer_options.hpp"

namespace recycled::inline RECYCLED_ABI {

/// The recycle cache, the selections that fill it, the sketch that they may go by, and what is known of how good all
/// this is. Scores come from outside, on a ScoreBoard, with the log-sum-exp of the group's query rows. KV heads may
/// work in parallel. R: what rows the recycle cache has.
template <Scalar T, Selection Keep, Scalar R>
class HeadSets {
 public:
  /// How one KV head's set stands.
  struct Head {
    bool must_refresh = true;  ///< there is no set, or something is missing from it: the next step has to be full
    index_t sketched = 0;      ///< refreshes by the sketch since the last full step
    bool measured = false;     ///< the last refresh found an old set that left something out,
    float retained_mass = 1;   ///< and this is what it still held (Refresh::retained_mass)
    bool checked = false;      ///< the last full step asked the sketch, too,
    float sketched_mass = 1;   ///< and this is what its choice would have held
  };

  /// `recycles`: whether there ever is a set.
  HeadSets(const Shape& shape, const LayerOptions& options, const Keep& selection, bool recycles)
      : shape_(shape),
        options_(options.attention),
        capacity_(options.capacity),
        full_every_(options.sketch.full_every),
        by_keys_(recycles && options.sketch.keys && options.attention.window == 0),
        selections_(static_cast<std::size_t>(shape.kv_heads), selection, recycles ? options.max_length : 0),
        heads_(shape.kv_heads, Head{}) {
    if (recycles) cache_ = RecycleCache<R>(shape, options.capacity);
    if (keeps_sketch(options, recycles)) sketch_.emplace(shape, options.sketch.coordinates, options.layer);
    if (sketch_) sketch_->reserve(options.max_length);
  }

  static bool keeps_sketch(const LayerOptions& options, bool recycles) {
    return recycles && options.sketch.coordinates > 0 && options.attention.window == 0;
  }

  /// Comes before a step over so many positions: what may fail for want of memory, with nothing changed.
  void reserve(index_t length) {
    selections_.reserve(length);
    if (sketch_) sketch_->reserve(length);
  }

  Head& operator[](index_t g) noexcept { return heads_[g]; }
  const Head& operator[](index_t g) const noexcept { return heads_[g]; }
  RecycleCache<R>& cache() noexcept { return cache_; }
  const RecycleCache<R>& cache() const noexcept { return cache_; }

  /// Whether KV head `g` may refresh by the sketch at the step that makes `length` positions. What a sketch finds it
  /// takes from a set's place alone, so nothing must be missing there; a set that has room for all needs no sketch.
  bool sketches(index_t g, index_t length) const noexcept {
    if (heads_[g].must_refresh || length <= capacity_) return false;
    return by_keys_ || (sketch_ && sketch_->built(g) && heads_[g].sketched + 1 < full_every_);
  }
  /// Whether the keys themselves are the sketch.
  bool by_keys() const noexcept { return by_keys_; }
  /// What a refresh of a KV head by the sketch reads of it.
  std::uint64_t sketch_bytes(index_t length) const noexcept {
    const index_t key_bytes = by_keys_ ? kernels::row_bytes<T>(shape_.head_dim) : 0;
    return static_cast<std::uint64_t>(by_keys_ ? length * key_bytes : sketch_->bytes(length));
  }
  /// Queries of the prompt: they say what the sketch is for.
  void see(std::span<const float> queries) noexcept {
    if (sketch_) sketch_->seen().add(queries);
  }
  /// After a step: its query, and what it may be time for.
  template <class E>
  void see_step(std::span<const float> query, const KvView<T>& kv, ScoreBoard& scores, E& executor) {
    chosen_for_ = 0;
    if (!sketch_) return;
    sketch_->seen().add_step(query, kv.length);
    renew_sketch(kv, scores, executor);
  }
  template <class E>
  void renew_sketch(const KvView<T>& kv, ScoreBoard& scores, E& executor) {
    if (sketch_ && kv.length > capacity_) sketch_->renew(kv, scores.axes(), executor);
  }

  /// The first set, by the mean scores of so many queries of the prompt.
  void choose_first(index_t g, const KvView<T>& kv, const Visible& visible, index_t queries,
                    ScoreBoard& scores) noexcept {
    scores.choose(g, selection(g), visible, kv, true, cache_, queries);
  }
  /// A new set by the sketch's logits of the packed `queries`, whose log-sum-exps go to `lse`; the old one is measured
  /// by them. False, and nothing done, if they are no numbers.
  bool refresh_by_sketch(index_t g, const KvView<T>& kv, const kernels::Queries& queries, std::span<float> lse,
                         ScoreBoard& scores) noexcept {
    const auto logits = scan(g, kv, queries, lse, scores);
    if (!is_sound(lse)) return false;
    replace(g, kv, logits, lse, scores, [&] { scores.choose(g, selection(g), logits, lse, kv, cache_); });
    ++heads_[g].sketched;
    return true;
  }
  /// The same by the logits of all keys, which stand on the board.
  bool refresh_by_keys(index_t g, const KvView<T>& kv, std::span<const float> lse, ScoreBoard& scores) noexcept {
    if (!is_sound(lse)) return false;
    scores.score(g, lse, Visible(options_, kv.length - 1));
    replace(g, kv, scores.logits(g), lse, scores, [&] { scores.choose_with_own(g, selection(g), kv, cache_); });
    return true;
  }
  /// A new set by the logits of a full step, which stand on the board. They tell how good the old one was, and the
  /// sketch. Returns the bytes that this read.
  std::uint64_t refresh_by_step(index_t g, const KvView<T>& kv, const kernels::Queries& queries,
                                std::span<const float> lse, ScoreBoard& scores) noexcept {
    heads_[g].sketched = 0;
    const Visible visible(options_, kv.length - 1);
    scores.score(g, lse, visible);
    replace(g, kv, scores.logits(g), lse, scores, [&] { scores.choose(g, selection(g), visible, kv, false, cache_); });
    return check_sketch(g, kv, queries, lse, scores);
  }
  /// After a recycled step: one entry leaves, if there are too many. `by_position`: see ScoreBoard::attended.
  void settle(index_t g, index_t own, std::span<const float> lse, bool by_position, ScoreBoard& scores) noexcept {
    if constexpr (detail::wants_attended<Keep>) scores.attended(g, lse, by_position, selection(g), cache_);
    cache_.settle(g, own);
  }

  /// The host chooses what the step of the token at `own` recycles: take_head(cache, g, visible) for every head.
  template <class E, class Take>
  void take(index_t own, E& executor, const Take& take_head) {
    drop_choice();
    executor(shape_.kv_heads, [&](index_t g) {
      take_head(cache_, g, Visible(options_, own));
      heads_[g].must_refresh = false;
    });
    chosen_for_ = own + 1;
  }
  /// Whether the host chose for the step that makes `length` positions. A choice for another is no longer good.
  bool takes_choice(index_t length) noexcept {
    if (chosen_for_ == length) return true;
    if (chosen_for_ > 0) all_must_refresh();
    return false;
  }
  /// A new prompt, or what else leaves no set to go on with.
  void all_must_refresh() noexcept {
    drop_choice();
    for (Head& head : heads_) head.must_refresh = true;
  }

  /// Positions from `length` on are gone.
  void truncate(index_t length) noexcept {
    for (index_t g = 0; g < shape_.kv_heads && cache_.capacity() > 0; ++g) {
      // A layer that holds nothing may meet a cache of any length next.
      if (length == 0 || cache_.last_evictor(g) >= length) heads_[g].must_refresh = true;
      cache_.truncate(g, length);
    }
    chosen_for_ = 0;
    truncate_selections(length);
    if (!sketch_) return;
    if (length == 0) return sketch_->clear();
    sketch_->truncate(length);
  }
  /// A step that was cut short leaves sets that are neither old nor new: they go, with what selections remember and
  /// with codes of what may never become part of the sequence. The next step is full.
  void abandon() noexcept {
    cache_.clear();
    if (sketch_) sketch_->clear();
    all_must_refresh();
    truncate_selections(0);
  }
  /// What selections remember counts no more: a prompt has come, and its queries will choose nothing.
  void forget(const Keep& selection) { selections_.each.assign(selections_.each.size(), selection); }
  void clear(const Keep& selection) {
    forget(selection);
    std::fill(heads_.begin(), heads_.end(), Head{});
    chosen_for_ = 0;
    cache_.clear();
    if (sketch_) sketch_->clear();
  }

  /// Of a layer that has `length` positions.
  template <class Io>
  void transfer(Io& io, index_t length) {
    // A choice is for the next step, if there ever is a set; in a layer that has seen nothing that may be any.
    const index_t next = length == 0 ? detail::most_positions : length + 1;
    io.count(chosen_for_, 0, cache_.capacity() == 0 ? 0 : next, "length that a set was chosen for");
    for (Head& head : heads_) {
      io.flag(head.must_refresh);
      io.count(head.sketched, 0, detail::most_positions, "sketched refreshes");
      io.flag(head.measured);
      io.flag(head.checked);
      io.plain(head.retained_mass, head.sketched_mass);
    }
    for (Keep& keep : selections_.each) io.learnt(keep, "selection");
    if (cache_.capacity() > 0) cache_.transfer(io, length == 0 ? std::max(chosen_for_ - 1, index_t{0}) : length);
    if (sketch_) sketch_->transfer(io, length);
  }

  /// Scores that are no numbers choose nothing sensible, nor does a query whose logits are all -infinity: then the next
  /// step looks again.
  static bool is_sound(std::span<const float> lse) noexcept {
    return std::all_of(lse.begin(), lse.end(), [](float one) { return std::isfinite(one); });
  }

 private:
  /// One for each KV head. A copy has the room of the original, where a vector's has that of what it holds alone.
  struct Selections {
    Selections(std::size_t heads, const Keep& selection, index_t most) : each(heads, selection), max_length(most) {
      reserve(max_length);
    }
    Selections(const Selections& other) : each(other.each), max_length(other.max_length) { reserve(max_length); }
    Selections(Selections&&) noexcept = default;
    Selections& operator=(const Selections&) = delete;
    Selections& operator=(Selections&&) noexcept = default;
    ~Selections() = default;

    void reserve(index_t length) {
      if constexpr (requires(Keep & keep) { keep.reserve(length); }) {
        for (Keep& keep : each) keep.reserve(length);
      }
    }
    std::vector<Keep> each;
    index_t max_length;
  };
  Keep& selection(index_t g) { return selections_.each[static_cast<std::size_t>(g)]; }

  void truncate_selections(index_t length) noexcept {
    if constexpr (requires(Keep & keep) { keep.truncate(length); }) {
      for (Keep& keep : selections_.each) keep.truncate(length);
    }
  }
  /// A set that was chosen and never read may be of another cache than the next one: its rows must not stay.
  void drop_choice() noexcept {
    if (chosen_for_ > 0) cache_.clear();
    chosen_for_ = 0;
  }

  kernels::CodeLogits<simd::native> scan(index_t g, const KvView<T>& kv, const kernels::Queries& queries,
                                         std::span<float> lse, ScoreBoard& scores) noexcept {
    sketch_->catch_up(g, kv);
    return sketch_->scan(g, queries, kv.length, options_.soft_cap, scores.sketched(g), scores.stride(), lse);
  }

  /// What the logits make of the old set, and a new one by choose().
  template <class Logits, class Choose>
  void replace(index_t g, const KvView<T>& kv, const Logits& by, std::span<const float> lse, ScoreBoard& scores,
               const Choose& choose) noexcept {
    Head& head = heads_[g];
    const bool sound = is_sound(lse);
    head.measured = !head.must_refresh && sound && misses_any(g, Visible(options_, kv.length - 1));
    if (head.measured) scores.measure_old(g, by, lse, kv.length - 1, cache_);
    choose();
    head.must_refresh = !sound;
    if (head.measured) head.retained_mass = scores.retained_mass(g, by, lse, cache_);
  }

  /// Whether the set and the new token leave out anything that is visible. If not, the old set could only be perfect,
  /// from which nothing is to be learnt.
  bool misses_any(index_t g, const Visible& visible) noexcept {
    if (cache_.size(g) + 1 < visible.size()) return true;
    cache_.close_gap(g);
    const std::span<const index_t> held = cache_.positions(g);
    return std::count_if(held.begin(), held.end(), [&](index_t p) { return visible.contains(p); }) + 1 < visible.size();
  }

  /// How good is the sketch? At a full step the truth is there to compare with: of the attention mass on the positions
  /// that were chosen, how much would those of the largest sketched logits have held, in the worst query row?
  std::uint64_t check_sketch(index_t g, const KvView<T>& kv, const kernels::Queries& queries,
                             std::span<const float> lse, ScoreBoard& scores) noexcept {
    Head& head = heads_[g];
    head.checked = sketch_ && sketch_->built(g) && kv.length > capacity_ && !head.must_refresh;
    if (!head.checked) return 0;
    const std::span<float> sketched_lse = scores.scratch_of(g);
    const auto logits = scan(g, kv, queries, sketched_lse, scores);
    head.checked = is_sound(sketched_lse);
    if (!head.checked) return sketch_bytes(kv.length);
    head.sketched_mass = scores.agreement(g, logits, sketched_lse, lse, kv.length, cache_);
    return sketch_bytes(kv.length);
  }

  Shape shape_;
  AttentionOptions options_;
  index_t capacity_ = 0;
  index_t full_every_ = 1;  // of so many refreshes one is no sketched one
  bool by_keys_ = false;    // refreshes read all keys, in place of a sketch
  index_t chosen_for_ = 0;  // the host chose what the step that makes so many positions recycles; 0: it didn't
  std::optional<KeySketch<T>> sketch_;
  Selections selections_;
  RecycleCache<R> cache_;  // without memory where nothing is recycled
  Array<Head> heads_;
};

}  // namespace recycled::inline RECYCLED_ABI
