// One token through one layer, once it is known which kind of step each KV head takes.
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "recycled/cache/prompt_window.hpp"
#include "recycled/schedule/schedule.hpp"
#include "recycled/scratch.hpp"
#include "recycled/sketch/key_sketch.hpp"
#include "recycled/step_work.hpp"
#include "recycled/types/layer_options.hpp"

namespace recycled::inline RECYCLED_ABI {

/// Reads the rows that a step reads, merges, and leaves the recycle cache ready for the next token. `Recycles` is false
/// for a layer that takes full steps alone: then no recycle cache and no scores are kept. Arguments are checked by the
/// caller. R: what rows the recycle cache has.
template <Scalar T, Selection Keep, bool Recycles, Scalar R>
class TokenAttention {
 public:
  /// A KV head's step: the caller sets `kind`, run() the rest.
  struct Head {
    StepKind kind = StepKind::full;
    bool must_refresh = true;     ///< there is no set, or something is missing from it: the next step has to be full
    bool reads_host = true;       ///< the host's rows were read, not the recycle cache
    index_t sketched = 0;         ///< refreshes by the sketch since the last full step
    bool measured = false;        ///< a full step found an old set to compare with,
    float retained_mass = 1;      ///< and this is what it still held (Refresh::retained_mass)
    bool checked = false;         ///< a full step asked the sketch, too,
    float sketched_mass = 1;      ///< and this is what its choice would have held
    std::uint64_t rows_read = 0;  ///< by the last step
    std::uint64_t bytes_read = 0;
    std::uint64_t bytes_full = 0;  ///< what a full step would have
  };

  TokenAttention(const Shape& shape, const LayerOptions& options, const Keep& selection)
      : shape_(shape),
        options_(options.attention),
        capacity_(options.capacity),
        full_every_(options.sketch.full_every),
        selections_(static_cast<std::size_t>(shape.kv_heads), selection),
        scratch_(shape, options.capacity, options.max_length,
                 keeps_sketch(options) ? KeySketch<T>::axis_floats(shape) : 0),
        heads_(shape.kv_heads, Head{}),
        work_(shape.kv_heads),
        lse_(shape.query_heads) {
    if constexpr (Recycles) cache_ = RecycleCache<R>(shape, options.capacity);
    reserve_selections(options.max_length);
    if (keeps_sketch(options)) {
      sketch_.emplace(shape, options.sketch.coordinates, options.layer);
      sketch_->reserve(options.max_length);
    }
  }

  /// Comes before every run() and choose_from_prompt(): what may fail for want of memory, with nothing changed.
  void reserve(const KvView<T>& kv) {
    scratch_.reserve(kv.length, kv.pages);
    reserve_selections(kv.length);
    if (sketch_) sketch_->reserve(kv.length);
  }
  /// Whether KV head `g` may refresh by the sketch at the step that makes `length` positions. What a sketch finds it
  /// takes from a set's place alone, so nothing must be missing there; a set that has room for all needs no sketch.
  bool sketches(index_t g, index_t length) const noexcept {
    return sketch_ && sketch_->built(g) && !heads_[g].must_refresh && length > capacity_ &&
           heads_[g].sketched + 1 < full_every_;
  }
  /// Queries of the prompt: they say what the sketch is for.
  void see(std::span<const float> queries) noexcept {
    if (sketch_) sketch_->see(queries);
  }
  detail::LayerScratch<T, Recycles>& scratch() noexcept { return scratch_; }
  const detail::LayerScratch<T, Recycles>& scratch() const noexcept { return scratch_; }
  Array<Head>& heads() noexcept { return heads_; }
  const Array<Head>& heads() const noexcept { return heads_; }
  const RecycleCache<R>& cache() const noexcept { return cache_; }

  /// The step of the token whose row is the last of `kv`.
  template <class E>
  void run(const float* query, const KvView<T>& kv, float* out, E& executor) {
    Attempt attempt(*this);
    workspace().pack_queries(query, 1, shape_, options_.scale);
    const auto sketched =
        std::count_if(heads_.begin(), heads_.end(), [](const Head& head) { return head.kind == StepKind::sketched; });
    // What was just copied is read before it leaves this core's cache, unless that leaves most cores idle.
    const auto attends_alone = [&](index_t g) {
      return heads_[g].kind == StepKind::sketched && sketched >= enough_heads;
    };
    if (sketched > 0) {
      executor(shape_.kv_heads, [&](index_t g) {
        if (heads_[g].kind == StepKind::sketched) look_at_sketch(g, kv);
        if (!attends_alone(g)) return;
        work_.run_alone(lay_out_set(g, all_work(g, kv)), shape_.group(), options_.soft_cap, workspace());
      });
    }
    work_.begin();
    for (index_t g = 0; g < shape_.kv_heads; ++g) {
      if (!attends_alone(g)) lay_out(g, kv);
    }
    attend(executor);
    executor(shape_.kv_heads, [&](index_t g) { finish(g, kv, out); });
    if (sketch_) {
      sketch_->see_step({query, static_cast<std::size_t>(shape_.query_size())}, kv.length);
      renew_sketch(kv, executor);
    }
    chosen_for_ = 0;
    attempt.succeeded = true;
  }

  /// Chooses the first sets by the prompt's last queries, on average over the window; `length` positions are the
  /// prompt.
  template <class E>
  void choose_from_prompt(const PromptWindow& window, const KvView<T>& kv, index_t length, E& executor) {
    Attempt attempt(*this);
    const index_t tokens = window.tokens();
    for (index_t i = 0; i < tokens; ++i) {
      const index_t seen = length - tokens + 1 + i;
      const Visible visible(options_, seen - 1);
      work_.begin();
      for (index_t g = 0; g < shape_.kv_heads; ++g) work_.read_host(host_work(g, kv, visible, true));
      workspace().pack_queries(window.query(i), 1, shape_, options_.scale);
      attend(executor);
      executor(shape_.kv_heads, [&](index_t g) {
        merge(g, nullptr);
        scores().score(g, lse_of(g), visible);
        if (tokens > 1) scores().average(g, seen, length, i, tokens);
        heads_[g].must_refresh = !is_sound(g) || (i > 0 && heads_[g].must_refresh);
        if (i + 1 == tokens) scores().choose(g, selection(g), visible, kv, ScoreBoard::Source::prompt, cache_, tokens);
      });
    }
    KvView<T> prompt = kv;
    prompt.length = length;
    if (sketch_) renew_sketch(prompt, executor);
    attempt.succeeded = true;
  }

  /// The host chooses what the step of the token at `own` recycles: take_head(board, cache, g, visible) for every head.
  template <class E, class Take>
  void take(index_t own, E& executor, const Take& take_head) {
    Attempt attempt(*this);
    drop_choice();
    executor(shape_.kv_heads, [&](index_t g) {
      take_head(scores(), cache_, g, Visible(options_, own));
      heads_[g].must_refresh = false;
    });
    chosen_for_ = own + 1;
    attempt.succeeded = true;
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
    for (index_t g = 0; g < shape_.kv_heads && Recycles; ++g) {
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
  void clear(const Keep& selection) {
    selections_.assign(selections_.size(), selection);
    std::fill(heads_.begin(), heads_.end(), Head{});
    chosen_for_ = 0;
    cache_.clear();
    if (sketch_) sketch_->clear();
  }

 private:
  using Isa = simd::native;
  static constexpr index_t enough_heads = 4;

  static bool keeps_sketch(const LayerOptions& options) {
    return Recycles && options.sketch.coordinates > 0 && options.attention.window == 0;
  }
  void reserve_selections(index_t length) {
    if constexpr (Recycles && requires(Keep & keep) { keep.reserve(length); }) {
      for (Keep& keep : selections_) keep.reserve(length);
    }
  }

  void truncate_selections(index_t length) noexcept {
    if constexpr (requires(Keep & keep) { keep.truncate(length); }) {
      for (Keep& keep : selections_) keep.truncate(length);
    }
  }

  /// A step that an executor's exception cuts short leaves sets that are neither old nor new: they are dropped, with
  /// what selections remember, and the next step is full.
  struct Attempt {
    explicit Attempt(TokenAttention& attention) : self(attention) {}
    Attempt(const Attempt&) = delete;
    Attempt& operator=(const Attempt&) = delete;
    ~Attempt() {
      if (succeeded) return;
      self.cache_.clear();
      if (self.sketch_) self.sketch_->clear();  // it may hold codes of what never became part of the sequence
      self.all_must_refresh();
      self.truncate_selections(0);
    }
    TokenAttention& self;
    bool succeeded = false;
  };

  /// A set that was chosen and never read may be of another cache than the next one: its rows must not stay.
  void drop_choice() noexcept {
    if (chosen_for_ > 0) cache_.clear();
    chosen_for_ = 0;
  }

  ScoreBoard& scores() noexcept { return scratch_.scores(); }
  kernels::Workspace<Isa>& workspace() noexcept { return scratch_.workspace(); }
  Keep& selection(index_t g) { return selections_[static_cast<std::size_t>(g)]; }
  std::span<const float> lse_of(index_t g) const {
    return {lse_.data() + g * shape_.group(), static_cast<std::size_t>(shape_.group())};
  }

  /// The rows that `visible` names in the host's memory.
  kernels::HeadWork<T> host_work(index_t g, const KvView<T>& kv, const Visible& visible, bool keep_logits) {
    return {.head = g,
            .keys = {kv.head_keys(g), kv.key_strides.position, shape_.head_dim},
            .values = {kv.head_values(g), kv.value_strides.position, shape_.value_dim},
            .pages = kv.pages,
            .sinks = visible.sinks,
            .window = visible.window,
            .sink = keep_logits ? scores().sink(g) : kernels::LogitSink{}};
  }

  /// What a full step of KV head `g` reads.
  kernels::HeadWork<T> all_work(index_t g, const KvView<T>& kv) {
    const bool keep_logits = Recycles && (heads_[g].kind == StepKind::full || detail::wants_attended<Keep>);
    return host_work(g, kv, Visible(options_, kv.length - 1), keep_logits);
  }
  /// Decides what KV head `g` reads; for a recycled step the new token joins the set. Steps are of consecutive
  /// positions, and a set holds visible positions alone: so at most one of them leaves the window at a time, and a set
  /// that is as large as what is visible is all of it.
  void lay_out(index_t g, const KvView<T>& kv) {
    Head& head = heads_[g];
    const index_t own = kv.length - 1;
    const kernels::HeadWork<T> all = all_work(g, kv);
    bool reads_all = head.kind == StepKind::full;
    if (head.kind == StepKind::recycled) {
      if (all.window.begin > all.sinks.end) cache_.remove(g, all.window.begin - 1, own);
      // A set from which nothing is missing is read where it came from: a full step's rows, cuts and bits.
      reads_all = cache_.size(g) + 1 == all.size();
      cache_.insert(g, own, kv);
    }
    if (!reads_all) return work_.read_recycled(lay_out_set(g, all));
    note(head, all);
    head.reads_host = true;
    head.bytes_full = head.bytes_read;
    work_.read_host(all);
  }
  /// KV head `g` reads its set, where a full step would read `all`.
  kernels::HeadWork<R> lay_out_set(index_t g, const kernels::HeadWork<T>& all) noexcept {
    Head& head = heads_[g];
    if (head.kind == StepKind::sketched) cache_.close_gap(g);
    const kernels::HeadWork<R> kept{
        .head = g, .keys = cache_.keys(g), .values = cache_.values(g), .window = {0, cache_.size(g)}, .sink = all.sink};
    note(head, all);
    head.bytes_full = head.bytes_read;
    note(head, kept);
    head.reads_host = false;
    return kept;
  }
  template <Scalar S>
  static void note(Head& head, const kernels::HeadWork<S>& work) noexcept {
    head.rows_read = static_cast<std::uint64_t>(work.size());
    head.bytes_read = head.rows_read * static_cast<std::uint64_t>(work.keys.bytes() + work.values.bytes());
  }

  /// Runs all pieces of all heads.
  template <class E>
  void attend(E& executor) {
    work_.run(executor, shape_.group(), options_.soft_cap, workspace());
  }
  void merge(index_t g, float* out) noexcept {
    work_.merge(g, shape_.group(), shape_.value_dim, workspace(), out, lse_.data() + g * shape_.group());
  }

  template <class E>
  void renew_sketch(const KvView<T>& kv, E& executor) {
    if (kv.length > capacity_) sketch_->renew(kv, scores().axes(), executor);
  }

  /// Chooses a new set by the sketch's logits, and measures the old one by them.
  void look_at_sketch(index_t g, const KvView<T>& kv) noexcept {
    Head& head = heads_[g];
    const index_t group = shape_.group();
    const std::span<float> lse{lse_.data() + g * group, static_cast<std::size_t>(group)};
    sketch_->catch_up(g, kv);
    const auto logits = sketch_->scan(g, workspace().queries(g * group, group), kv.length, options_.soft_cap,
                                      scores().sums(g), scores().stride(), lse);
    if (!is_sound(g)) {  // a query that is no number takes the safe way
      head.kind = StepKind::full;
      return;
    }
    scores().score(g, logits, lse, kv.length);
    replace_set(g, kv, logits, ScoreBoard::Source::sketch);
    ++head.sketched;
  }

  /// By the scores on the board: what they make of the old set, and a new one.
  template <class Logits>
  void replace_set(index_t g, const KvView<T>& kv, const Logits& by, ScoreBoard::Source source) noexcept {
    Head& head = heads_[g];
    const bool sound = is_sound(g);
    head.measured = !head.must_refresh && sound;
    if (head.measured) scores().measure_old(g, by, lse_of(g), kv.length - 1, cache_);
    scores().choose(g, selection(g), Visible(options_, kv.length - 1), kv, source, cache_);
    head.must_refresh = !sound;
    if (head.measured) head.retained_mass = scores().retained_mass(g, by, lse_of(g), cache_);
  }

  /// How good is the sketch? At a full step the truth is there to compare with: of the attention mass on the positions
  /// that were chosen, how much would those of the largest sketched logits have held, in the worst query row?
  void check_sketch(index_t g, const KvView<T>& kv) noexcept {
    Head& head = heads_[g];
    head.checked = sketch_ && sketch_->built(g) && kv.length > capacity_ && !head.must_refresh;
    if (!head.checked) return;
    sketch_->catch_up(g, kv);
    const index_t group = shape_.group();
    const std::span<float> lse = scores().scratch_of(g);
    const auto logits = sketch_->scan(g, workspace().queries(g * group, group), kv.length, options_.soft_cap,
                                      scores().sums(g), scores().stride(), lse);
    head.sketched_mass = scores().agreement(g, logits, lse, lse_of(g), kv.length, cache_);
    head.bytes_read += static_cast<std::uint64_t>(sketch_->bytes(kv.length));
  }

  /// After a head's pieces: its output, then a new set, or the one entry that leaves.
  void finish(index_t g, const KvView<T>& kv, float* out) noexcept {
    merge(g, out + g * shape_.group() * shape_.value_dim);
    if constexpr (Recycles) {
      Head& head = heads_[g];
      if (head.kind == StepKind::sketched) {
        head.must_refresh = head.must_refresh || !is_sound(g);
        head.bytes_read += static_cast<std::uint64_t>(sketch_->bytes(kv.length));
        return;
      }
      if (head.kind == StepKind::recycled) {
        if constexpr (detail::wants_attended<Keep>) {
          scores().attended(g, lse_of(g), head.reads_host, selection(g), cache_);
        }
        return cache_.settle(g, kv.length - 1);
      }
      head.sketched = 0;
      scores().score(g, lse_of(g), Visible(options_, kv.length - 1));
      replace_set(g, kv, scores().logits(g), ScoreBoard::Source::step);
      check_sketch(g, kv);
    }
  }

  /// Scores that are no numbers choose nothing sensible: then the next step looks again.
  bool is_sound(index_t g) const noexcept {
    return std::none_of(lse_of(g).begin(), lse_of(g).end(), [](float lse) { return lse != lse; });
  }

  Shape shape_;
  AttentionOptions options_;
  index_t capacity_ = 0;
  index_t full_every_ = 1;  // of so many refreshes one is no sketched one
  index_t chosen_for_ = 0;  // the host chose what the step that makes so many positions recycles; 0: it didn't
  std::optional<KeySketch<T>> sketch_;
  std::vector<Keep> selections_;  // one for each KV head
  RecycleCache<R> cache_;
  detail::LayerScratch<T, Recycles> scratch_;
  Array<Head> heads_;
  StepWork<T, R> work_;
  Array<float> lse_;  // [query_heads]
};

}  // namespace recycled::inline RECYCLED_ABI
