// One token through one layer, once it is known which kind of step each KV head takes.
#pragma once

#include <algorithm>

#include "recycled/cache/prompt_window.hpp"
#include "recycled/head_sets.hpp"
#include "recycled/schedule/schedule.hpp"
#include "recycled/scratch.hpp"
#include "recycled/step_work.hpp"

namespace recycled::inline RECYCLED_ABI {

/// Reads the rows that a step reads, merges, and has the sets made ready for the next token. `Recycles` is false for a
/// layer that takes full steps alone: then there are no sets and no scores are kept. Arguments are checked by the
/// caller. R: what rows the recycle cache has.
template <Scalar T, Selection Keep, bool Recycles, Scalar R>
class TokenAttention {
 public:
  /// A KV head's step: the caller sets `kind`, run() the rest.
  struct Head {
    StepKind kind = StepKind::full;
    bool reads_host = true;       ///< the host's rows were read, not the recycle cache
    std::uint64_t rows_read = 0;  ///< by the last step
    std::uint64_t bytes_read = 0;
    std::uint64_t bytes_full = 0;     ///< what a full step would have
    std::uint64_t bytes_scanned = 0;  ///< of those read, what of the sketch, or of the keys in its place
  };

  TokenAttention(const Shape& shape, const LayerOptions& options, const Keep& selection)
      : shape_(shape),
        options_(options.attention),
        sets_(shape, options, selection, Recycles),
        scratch_(shape, options.capacity, options.max_length,
                 Sets::keeps_sketch(options, Recycles) ? KeySketch<T>::axis_floats(shape) : 0),
        heads_(shape.kv_heads, Head{}),
        work_(shape.kv_heads),
        lse_(shape.query_heads) {}

  /// Comes before every run() and choose_from_prompt(): what may fail for want of memory, with nothing changed.
  void reserve(const KvView<T>& kv) {
    scratch_.reserve(kv.length, kv.pages);
    if constexpr (Recycles) sets_.reserve(kv.length);
  }
  detail::LayerScratch<T, Recycles>& scratch() noexcept { return scratch_; }
  const detail::LayerScratch<T, Recycles>& scratch() const noexcept { return scratch_; }
  template <class Io>
  void transfer(Io& io, index_t length) {
    for (Head& head : heads_) io.count(head.kind, 0, static_cast<index_t>(StepKind::sketched), "kind of a step");
    sets_.transfer(io, length);
  }
  void clear(const Keep& selection) {
    std::fill(heads_.begin(), heads_.end(), Head{});
    sets_.clear(selection);
  }
  Array<Head>& heads() noexcept { return heads_; }
  const Array<Head>& heads() const noexcept { return heads_; }
  HeadSets<T, Keep, R>& sets() noexcept { return sets_; }
  const HeadSets<T, Keep, R>& sets() const noexcept { return sets_; }

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
    for (Head& head : heads_) head.bytes_scanned = 0;
    if (sketched > 0) {
      if (sets_.by_keys()) read_keys(kv, executor);
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
    sets_.see_step({query, static_cast<std::size_t>(shape_.query_size())}, kv, scores(), executor);
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
        sets_[g].must_refresh = !Sets::is_sound(lse_of(g)) || (i > 0 && sets_[g].must_refresh);
        if (i + 1 == tokens) sets_.choose_first(g, kv, visible, tokens, scores());
      });
    }
    KvView<T> prompt = kv;
    prompt.length = length;
    sets_.renew_sketch(prompt, scores(), executor);
    attempt.succeeded = true;
  }

  /// The host chooses what the step of the token at `own` recycles: take_head(board, cache, g, visible) for every head.
  template <class E, class Take>
  void take(index_t own, E& executor, const Take& take_head) {
    Attempt attempt(*this);
    sets_.take(own, executor, [&](RecycleCache<R>& cache, index_t g, const Visible& visible) {
      take_head(scores(), cache, g, visible);
    });
    attempt.succeeded = true;
  }

 private:
  using Isa = simd::native;
  using Sets = HeadSets<T, Keep, R>;
  static constexpr index_t enough_heads = 4;

  /// An executor's exception may cut short what changes sets.
  struct Attempt {
    explicit Attempt(TokenAttention& attention) : self(attention) {}
    Attempt(const Attempt&) = delete;
    Attempt& operator=(const Attempt&) = delete;
    ~Attempt() {
      if (!succeeded) self.sets_.abandon();
    }
    TokenAttention& self;
    bool succeeded = false;
  };

  ScoreBoard& scores() noexcept { return scratch_.scores(); }
  kernels::Workspace<Isa>& workspace() noexcept { return scratch_.workspace(); }
  kernels::Queries queries(index_t g) noexcept { return workspace().queries(g * shape_.group(), shape_.group()); }
  std::span<float> lse_of(index_t g) noexcept {
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
      RecycleCache<R>& cache = sets_.cache();
      if (all.window.begin > all.sinks.end) cache.remove(g, all.window.begin - 1, own);
      // A set from which nothing is missing is read where it came from: a full step's rows, cuts and bits.
      reads_all = cache.size(g) + 1 == all.size();
      cache.insert(g, own, kv);
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
    const RecycleCache<R>& cache = sets_.cache();
    const kernels::HeadWork<R> kept{
        .head = g, .keys = cache.keys(g), .values = cache.values(g), .window = {0, cache.size(g)}, .sink = all.sink};
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

  /// The keys of all that refresh by them: their logits, as for a full step, and no output.
  template <class E>
  void read_keys(const KvView<T>& kv, E& executor) {
    work_.begin();
    for (index_t g = 0; g < shape_.kv_heads; ++g) {
      if (heads_[g].kind != StepKind::sketched) continue;
      kernels::HeadWork<T> keys = host_work(g, kv, Visible(options_, kv.length - 1), true);
      keys.values.dim = 0;
      work_.read_host(keys);
    }
    attend(executor);
  }
  /// A new set by the sketch. A query that is no number takes the safe way.
  void look_at_sketch(index_t g, const KvView<T>& kv) noexcept {
    if (sets_.by_keys()) merge(g, nullptr);
    const bool sound = sets_.by_keys() ? sets_.refresh_by_keys(g, kv, lse_of(g), scores())
                                       : sets_.refresh_by_sketch(g, kv, queries(g), lse_of(g), scores());
    if (!sound) heads_[g].kind = StepKind::full;
    // Keys were read before that was known, codes are not.
    if (sound || sets_.by_keys()) heads_[g].bytes_scanned = sets_.sketch_bytes(kv.length);
  }

  /// After a head's pieces: its output, then a new set, or the one entry that leaves.
  void finish(index_t g, const KvView<T>& kv, float* out) noexcept {
    merge(g, out + g * shape_.group() * shape_.value_dim);
    if constexpr (Recycles) {
      Head& head = heads_[g];
      if (head.kind == StepKind::recycled) {
        sets_.settle(g, kv.length - 1, lse_of(g), head.reads_host, scores());
      } else if (head.kind == StepKind::full) {
        head.bytes_read += sets_.refresh_by_step(g, kv, queries(g), lse_of(g), scores());
      } else {
        sets_[g].must_refresh = !Sets::is_sound(lse_of(g));
      }
      head.bytes_read += head.bytes_scanned;
    }
  }

  Shape shape_;
  AttentionOptions options_;
  Sets sets_;
  detail::LayerScratch<T, Recycles> scratch_;
  Array<Head> heads_;
  StepWork<T, R> work_;
  Array<float> lse_;  // [query_heads]
};

}  // namespace recycled::inline RECYCLED_ABI
