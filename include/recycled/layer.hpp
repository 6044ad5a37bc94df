// One attention layer over KV memory that the host owns; the state machine of Recycled Attention.
#pragma once

#include <span>
#include <vector>

#include "recycled/executor/serial.hpp"
#include "recycled/kernels/prefill.hpp"
#include "recycled/schedule/fixed_stride.hpp"
#include "recycled/schedule/pace.hpp"
#include "recycled/selection/top_k.hpp"
#include "recycled/token_attention.hpp"
#include "recycled/types/statistics.hpp"

namespace recycled::inline RECYCLED_ABI {

/// Decode attention of one layer that takes a full step when `Policy` says so, keeps the K positions that mattered for
/// each KV head (`Keep` chooses them), and recycles them in between. The host's cache is read in place; what the layer
/// owns is the recycle cache, kv_heads * (K + 1) packed rows, the sketch if it keeps one, and a Scratch, which layers
/// can share.
///
/// The recycle cache has rows of type R: the host's, or half or bfloat16, to which they are rounded when they join.
/// That is half the bytes of float, and read faster than q8_0 while it is in a cache. What is beyond half's range
/// (65504) becomes infinite: such rows need bfloat16.
///
/// A value: copies share nothing but what their schedules point to (Budgeted does), and a failed assignment changes
/// nothing; one object serves one layer of one sequence. Different objects may be used from different threads at the
/// same time unless they share a Scratch, one object from one thread at a time, and its const members from several.
/// Wrong arguments throw std::invalid_argument and leave the layer as it was. After an executor that throws the length
/// is as it was; if that was in a step, the next one is full or chooses the prompt's set again. A layer that was moved
/// from may be assigned to or destroyed. `out` must not overlap the other arguments.
template <Scalar T, Schedule Policy = FixedStride, Selection Keep = TopK, Scalar R = T>
class LayerAttention {
  static_assert(std::same_as<R, T> || std::same_as<R, half> || std::same_as<R, bfloat16>,
                "rows are recycled as they are, or as half or bfloat16");

 public:
  /// Throws std::invalid_argument for a shape, option or policy that can't be.
  LayerAttention(const Shape& shape, const LayerOptions& options, const Policy& schedule = {},
                 const Keep& selection = {})
      : shape_(detail::checked<T>(shape)),
        options_(detail::checked<recycles>(options, shape_)),
        initial_selection_(selection),
        pace_(schedule, shape_, options.layer),
        attention_(shape_, options_, selection),
        prompt_(detail::observation_window(selection), shape_.query_size()) {
    detail::validate(selection);
    statistics_.heads.resize(static_cast<std::size_t>(shape_.kv_heads));
  }
  /// A copy works in a Scratch of its own.
  LayerAttention(const LayerAttention&) = default;
  /// A move, also by assignment, takes the other's Scratch along.
  LayerAttention(LayerAttention&&) noexcept = default;
  /// Goes on working in the Scratch that this layer worked in.
  LayerAttention& operator=(const LayerAttention& other) {
    LayerAttention copy(other);
    if (scratch() != nullptr) copy.share(scratch());
    return *this = std::move(copy);
  }
  LayerAttention& operator=(LayerAttention&&) noexcept = default;
  ~LayerAttention() = default;

  /// One decode step. query [query_heads, head_dim], out [query_heads, value_dim]; the row of the new token is the last
  /// of `kv`, whose length is one more than at the step before (after a prompt that the layer has not seen: anything).
  /// `compared`, of query's size, is what the schedule compares instead of the query (before RoPE, say).
  template <Executor E = Serial>
  void step(std::span<const float> query, const KvView<T>& kv, std::span<float> out, E&& executor = {},
            std::span<const float> compared = {}) {
    check(query, kv, out, 1, compared);
    const std::span<const float> queries = compared.empty() ? query : compared;
    prepare(kv, executor);
    attention_.reserve(kv);
    const bool chosen = attention_.sets().takes_choice(kv.length);
    decide(queries, kv.length, chosen);
    attention_.run(query.data(), kv, out.data(), executor);
    pace_.stepped();
    length_ = kv.length;
    std::uint64_t bytes_read = 0;
    std::uint64_t bytes_full = 0;
    for (index_t g = 0; g < shape_.kv_heads; ++g) {
      account(g, queries, chosen);
      bytes_read += attention_.heads()[g].bytes_read;
      bytes_full += attention_.heads()[g].bytes_full;
    }
    pace_.spent(bytes_read, bytes_full);
  }

  /// Causal attention of a chunk of the prompt: queries [tokens, query_heads, head_dim], out [tokens, query_heads,
  /// value_dim], and the tokens' rows are the last of `kv`. Chunks of any size give the same bits. The scores of the
  /// last prompt tokens (the selection's observation window) choose the first recycle cache, at the next step.
  /// `compared`, of one query's size, stands for the last token.
  template <Executor E = Serial>
  void prefill(std::span<const float> queries, const KvView<T>& kv, std::span<float> out, E&& executor = {},
               std::span<const float> compared = {}) {
    const index_t tokens = detail::token_count(queries, shape_);
    check(queries, kv, out, tokens, compared);
    auto& workspace = attention_.scratch().workspace();
    kernels::prefill_reserve(shape_, tokens, workspace);
    kernels::prefill(shape_, options_.attention, kv, queries.data(), tokens, out.data(), workspace, executor);
    remember(queries, kv.length, compared);
  }

  /// The host ran the prompt (or a part of it) by itself: these are the queries [tokens, query_heads, head_dim] of its
  /// last tokens, and `length` positions are in the cache now. Without this call the first step is a full one.
  void observe(std::span<const float> queries, index_t length, std::span<const float> compared = {}) {
    const index_t tokens = detail::token_count(queries, shape_);
    detail::require(length >= length_ + tokens, "length", length, [&] {
      return detail::text("at least ", length_ + tokens, ": the positions so far and these tokens");
    });
    detail::require(length <= detail::most_positions, "length", length, "at most 2^40 positions");
    detail::check_compared(compared, shape_);
    const bool skips = length > length_ + tokens;
    remember(queries, length, compared);
    // Where tokens that nobody saw lie in between, the observation window can't reach across.
    if (skips) prompt_.keep_last(tokens);
  }

  /// Chooses the first recycle cache now, from `kv` that holds at least the prompt, so that the first step need not.
  /// Does nothing if there was no prompt, or if it is done.
  template <Executor E = Serial>
  void prepare(const KvView<T>& kv, E&& executor = {}) {
    if (prompt_.tokens() == 0) return;
    const detail::SeenPages seen = detail::check(kv, shape_, seen_);
    detail::require(kv.length >= length_, "KvView.length", kv.length,
                    [this] { return detail::text("at least the prompt's ", length_); });
    saw(seen);
    if constexpr (recycles) {
      attention_.reserve(kv);
      attention_.choose_from_prompt(prompt_, kv, length_, executor);
    }
    prompt_.clear();
  }

  /// Another's choice of what the next step reads (another layer's, a learned indexer's): `positions` [kv_heads, n],
  /// the most important first, -1 for none, of each KV head at most `capacity` and none twice. The step attends to them
  /// and to its own token, whatever the schedule says, for which it counts as a refresh that measured nothing. Later
  /// tokens join the set as ever, and the last of the positions leave first, unless the selection goes by what steps
  /// attend to. What a sliding window hides is left out, and the new token's own position counts for nothing. `kv`
  /// holds the positions so far, and may hold the new token's; for a layer that has seen nothing it is what the step
  /// will get.
  template <Executor E = Serial>
  void choose_positions(std::span<const index_t> positions, const KvView<T>& kv,
                        E&& executor = {}) requires(detail::recycles<Policy>) {
    const index_t own = check_choice(kv);
    const auto n = positions.size() / static_cast<std::size_t>(shape_.kv_heads);
    detail::require(positions.size() % static_cast<std::size_t>(shape_.kv_heads) == 0, "positions.size()",
                    positions.size(), [&] { return detail::text("a multiple of kv_heads = ", shape_.kv_heads); });
    attention_.reserve(kv);
    for (index_t g = 0; g < shape_.kv_heads; ++g) {
      const auto of_head = positions.subspan(static_cast<std::size_t>(g) * n, n);
      detail::check_chosen(of_head, options_.capacity, own + 1);
      const index_t twice = attention_.scratch().scores().repeated(g, of_head);
      detail::require(twice < 0, "positions", twice, [g] { return detail::text("each once for KV head ", g); });
    }
    take_for_prompt(own, executor, [&](ScoreBoard& scores, RecycleCache<R>& cache, index_t g, const Visible& visible) {
      scores.take_positions(g, positions.subspan(static_cast<std::size_t>(g) * n, n), visible, own, kv, cache);
    });
  }
  /// The same by `scores` [kv_heads, kv.length]: the capacity highest of every KV head, of equals the lower position;
  /// NaN is -infinity, and the new token is read whatever its score.
  template <Executor E = Serial>
  void choose_by_scores(std::span<const float> scores, const KvView<T>& kv,
                        E&& executor = {}) requires(detail::recycles<Policy>) {
    const index_t own = check_choice(kv);
    const auto n = static_cast<std::size_t>(kv.length);
    detail::require_size(scores.size(), detail::checked_product(shape_.kv_heads, kv.length, "scores.size()"),
                         "scores.size()", "kv_heads * KvView.length");
    attention_.reserve(kv);
    take_for_prompt(own, executor, [&](ScoreBoard& board, RecycleCache<R>& cache, index_t g, const Visible& visible) {
      board.take_scores(g, scores.subspan(static_cast<std::size_t>(g) * n, n), visible, own, kv, cache);
    });
  }

  /// Takes back all positions from `length` on (speculative decoding). If one of them had chosen the set of a
  /// head, or cost another its place in it, the next step of that head is full. Decode steps are counted back, too.
  void truncate(index_t length) {
    detail::require_at_most(length, length_, "truncate: length");
    const index_t removed = length_ - length;
    if (removed == 0 && length > 0) return;
    drop_from_prompt(removed);
    attention_.sets().truncate(length);
    pace_.take_back(removed);
    length_ = length;
    seen_.positions = std::min(seen_.positions, length);
  }
  /// Takes back the last `tokens` positions.
  void rollback(index_t tokens) {
    detail::require_at_most(tokens, length_, "rollback: tokens");
    truncate(length_ - tokens);
  }
  /// As newly made, with the memory kept.
  void clear() {
    pace_.clear();
    attention_.clear(initial_selection_);
    prompt_.clear();
    prompt_compared_ = false;
    std::fill(statistics_.heads.begin(), statistics_.heads.end(), HeadStatistics{});
    length_ = 0;
    seen_ = {};
  }

  /// Writes all that the layer knows to a binary stream, but for the rows that the host owns: positions, sets with
  /// their rows, the sketch, what the schedule and the selection have learnt (Learnt), statistics. A state is of the
  /// machine's byte order, and has a version and checksums. Throws std::invalid_argument if the stream fails.
  void save(std::ostream& stream) const {
    detail::StateWriter io(stream);
    io.begin("layer");
    agree(io);
    // A writer changes nothing.
    const_cast<LayerAttention&>(*this).transfer(io);  // NOLINT(cppcoreguidelines-pro-type-const-cast)
    io.end("the layer");
    io.finish();
  }
  /// Goes on from a state that was saved by a layer of the same types, shape and options: over the same rows, on the
  /// same machine, with the same bits. Anything else (another version, shape or capacity, a file that is cut short or
  /// damaged) throws std::invalid_argument and changes nothing; whatever the stream holds, no more memory is taken than
  /// in proportion to it and to this layer, of which there are two until all is read. Not compared are max_length,
  /// SketchOptions::full_every, and the parameters of schedule and selection: they stay as they are here. Their types
  /// are compared by the size of what they have learnt.
  void load(std::istream& stream) {
    LayerAttention loaded = fresh();
    detail::StateReader io(stream);
    io.begin("layer");
    agree(io);
    loaded.transfer(io);
    io.end("the layer");
    if (scratch() != nullptr) loaded.share(scratch());
    *this = std::move(loaded);
  }

  /// Works in `scratch` from now on, as other layers may that are never used at the same time as this one. Throws
  /// std::invalid_argument if it is null.
  void share(std::shared_ptr<Scratch> scratch) {
    detail::require(scratch != nullptr, "scratch", "nullptr", "a scratch");
    attention_.scratch().share(std::move(scratch));
  }
  /// What the layer works in; null after it was moved from.
  const std::shared_ptr<Scratch>& scratch() const noexcept { return attention_.scratch().shared(); }

  /// Positions known so far; 0 before the first call.
  index_t length() const noexcept { return length_; }
  const Shape& shape() const noexcept { return shape_; }
  const LayerStatistics& statistics() const noexcept { return statistics_; }
  const Policy& schedule() const noexcept { return pace_.schedule(); }
  /// The kind of the last step of a KV head, also if it failed.
  StepKind last_step(index_t kv_head) const { return attention_.heads()[checked_head(kv_head)].kind; }
  /// The positions that a KV head holds for the next recycled step, ascending: none before prepare() or the first step;
  /// those of before, if the next step will be full and choose anew (after a further prompt, after a rollback).
  std::vector<index_t> recycled_positions(index_t kv_head) const {
    const index_t g = checked_head(kv_head);
    return recycles ? attention_.sets().cache().held(g) : std::vector<index_t>{};
  }

 private:
  template <Scalar, Schedule, Selection, Scalar>
  friend class Decoder;
  static constexpr bool recycles = detail::recycles<Policy>;

  /// One that has seen nothing, with the same settings.
  LayerAttention fresh() const { return LayerAttention(shape_, options_, pace_.initial(), initial_selection_); }
  /// What has to be the same where a state is loaded.
  template <class Io>
  void agree(Io& io) const {
    io.same(type_name<T>, "KV type");
    io.same(type_name<R>, "type of recycled rows");
    io.same(index_t{recycles}, "whether the schedule recycles");
    detail::agree(io, shape_, options_);
  }
  template <class Io>
  void transfer(Io& io) {
    io.count(length_, 0, detail::most_positions, "length");
    io.flag(prompt_compared_);
    for (HeadStatistics& head : statistics_.heads) head.transfer(io);
    pace_.transfer(io);
    attention_.transfer(io, length_);
    prompt_.transfer(io, length_);
  }

  index_t checked_head(index_t kv_head) const {
    detail::require(kv_head >= 0 && kv_head < shape_.kv_heads, "kv_head", kv_head,
                    [&] { return detail::text("0 to ", shape_.kv_heads - 1); });
    return kv_head;
  }
  /// The arguments of a step or a prefill of `tokens` tokens.
  void check(std::span<const float> queries, const KvView<T>& kv, std::span<float> out, index_t tokens,
             std::span<const float> compared) {
    detail::require_size(queries.size(), tokens * shape_.query_size(), "query.size()",
                         "query_heads * head_dim for each token");
    detail::require_size(out.size(), detail::checked_product(tokens, shape_.output_size(), "out.size()"), "out.size()",
                         "query_heads * value_dim for each token");
    detail::check_compared(compared, shape_);
    const detail::SeenPages seen = detail::check(kv, shape_, seen_);
    detail::require(
        length_ == 0 ? kv.length >= tokens : kv.length == length_ + tokens, "KvView.length", kv.length, [&] {
          return detail::text(
              length_ + tokens, ": ", length_, " positions so far and ", tokens,
              " new, whose rows are in the view (truncate() takes positions back, observe() skips a prompt)");
        });
    saw(seen);
  }
  /// Pages behind the layer's length may change until they are part of it.
  void saw(const detail::SeenPages& seen) noexcept {
    seen_ = seen;
    seen_.positions = std::min(seen_.positions, length_);
  }

  /// What comes with a choice for the next step; returns that step's position.
  index_t check_choice(const KvView<T>& kv) {
    const detail::SeenPages seen = detail::check(kv, shape_, seen_);
    detail::require(
        length_ == 0 || kv.length == length_ || kv.length == length_ + 1, "KvView.length", kv.length,
        [this] { return detail::text(length_, " or ", length_ + 1, ": the positions so far, and the new one"); });
    saw(seen);
    return length_ == 0 ? kv.length - 1 : length_;
  }

  /// A chunk of the prompt: its last token counts as a full step.
  void remember(std::span<const float> queries, index_t length, std::span<const float> compared) {
    prompt_.push(queries);
    attention_.sets().see(queries);
    prompt_compared_ = !compared.empty();
    pace_.begin(compared.empty() ? queries.last(static_cast<std::size_t>(shape_.query_size())) : compared);
    attention_.sets().all_must_refresh();
    length_ = length;
  }
  /// If all of the prompt goes before it has chosen: it still ends what selections remember. Before anything else
  /// changes, because copying a host's selection may throw.
  void forget_before_prompt(index_t removed) {
    if (prompt_.tokens() > 0 && removed >= prompt_.tokens()) attention_.sets().forget(initial_selection_);
  }
  /// Sets from outside, in place of those that the prompt would have chosen.
  template <class E, class Take>
  void take_for_prompt(index_t own, E& executor, const Take& take) {
    forget_before_prompt(prompt_.tokens());
    attention_.take(own, executor, take);
    prompt_.clear();
  }
  /// The prompt ends earlier: the token that is now its last counts as the full step. What the host gave for comparison
  /// is known of the removed one alone.
  void drop_from_prompt(index_t tokens) {
    forget_before_prompt(tokens);
    prompt_.drop(tokens);
    if (prompt_.tokens() == 0) return;
    if (prompt_compared_) return pace_.begin_anywhere();
    pace_.begin({prompt_.query(prompt_.tokens() - 1), static_cast<std::size_t>(shape_.query_size())});
  }

  /// Asks the schedule, unless the host has `chosen`. A refresh is sketched where that can be.
  void decide(std::span<const float> queries, index_t length, bool chosen) {
    if (chosen) {
      for (auto& head : attention_.heads()) head.kind = StepKind::recycled;
      return;
    }
    const Array<StepKind>& kinds = pace_.decide(queries, length);
    for (index_t g = 0; g < shape_.kv_heads; ++g) {
      auto& head = attention_.heads()[g];
      head.kind = attention_.sets()[g].must_refresh || !recycles ? StepKind::full : kinds[g];
      if (head.kind != StepKind::recycled)
        head.kind = attention_.sets().sketches(g, length) ? StepKind::sketched : StepKind::full;
    }
  }

  /// Ages, statistics, and what the schedule learns: on the calling thread, in the order of the heads.
  void account(index_t g, std::span<const float> queries, bool chosen) noexcept {
    const auto& head = attention_.heads()[g];
    HeadStatistics& count = statistics_.heads[static_cast<std::size_t>(g)];
    count.rows_read += head.rows_read;
    count.bytes_read += head.bytes_read;
    count.bytes_full += head.bytes_full;
    if (head.kind == StepKind::recycled) {
      ++count.recycled_steps;
      return chosen ? pace_.refreshed(g, queries) : pace_.recycled(g);
    }
    ++(head.kind == StepKind::sketched ? count.sketched_steps : count.full_steps);
    const auto& set = attention_.sets()[g];
    if (head.kind == StepKind::full && set.checked) {
      ++count.checked;
      count.sketched_mass += static_cast<double>(set.sketched_mass);
    }
    pace_.refreshed(g, queries);
    if (!set.measured) return;
    ++count.measured;
    count.retained_mass += static_cast<double>(set.retained_mass);
    pace_.measured(g, set.retained_mass);
  }

  Shape shape_;
  LayerOptions options_;
  Keep initial_selection_;
  Pace<Policy> pace_;
  TokenAttention<T, Keep, recycles, R> attention_;
  PromptWindow prompt_;
  bool prompt_compared_ = false;  // pace_ compares with what the host gave for that, not with the prompt's last query
  index_t length_ = 0;
  detail::SeenPages seen_;  // its positions are below length_
  LayerStatistics statistics_;
};

}  // namespace recycled::inline RECYCLED_ABI
