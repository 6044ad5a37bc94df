// Door 1: one attention layer over KV memory that the host owns; the state machine of Recycled Attention.
#pragma once

#include <span>
#include <vector>

#include "recycled/executor/serial.hpp"
#include "recycled/kernels/prefill.hpp"
#include "recycled/schedule/fixed_stride.hpp"
#include "recycled/selection/top_k.hpp"
#include "recycled/token_attention.hpp"
#include "recycled/types/statistics.hpp"

namespace recycled::inline RECYCLED_ABI {

/// Decode attention of one layer that takes a full step when `Policy` says so, keeps the K positions that mattered for
/// each KV head (`Keep` chooses them), and recycles them in between. The host's cache is read in place; what the layer
/// owns is the recycle cache, kv_heads * (K + 1) packed rows, the sketch if it keeps one, and a Scratch, which layers
/// can share.
///
/// A value: copies share nothing, and a failed assignment changes nothing; one object serves one layer of one sequence.
/// Different objects may be used from different threads at the same time unless they share a Scratch, one object from
/// one thread at a time. Wrong arguments throw std::invalid_argument and leave the layer as it was. After an executor
/// that throws the length is as it was; if that was in a step, the next one is full or chooses the prompt's set again.
/// A layer that was moved from may be assigned to or destroyed. `out` must not overlap the other arguments.
template <Scalar T, Schedule Policy = FixedStride, Selection Keep = TopK>
class LayerAttention {
 public:
  /// Throws std::invalid_argument for a shape, option or policy that can't be.
  LayerAttention(const Shape& shape, const LayerOptions& options, const Policy& schedule = {},
                 const Keep& selection = {})
      : shape_(detail::checked<T>(shape)),
        options_(detail::checked<recycles>(options, shape_)),
        initial_schedule_(schedule),
        initial_selection_(selection),
        schedule_(schedule),
        attention_(shape_, options_, selection),
        prompt_(detail::observation_window(selection), shape_.query_size()),
        kinds_(shape_.kv_heads, StepKind::full),
        ages_(shape_.kv_heads, 0),
        full_queries_(shape_.query_size(), 0.0F) {
    detail::validate(schedule);
    detail::validate(selection);
    if constexpr (requires { initial_schedule_.reserve(shape_.kv_heads); }) {
      initial_schedule_.reserve(shape_.kv_heads);
      schedule_ = initial_schedule_;
    }
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
    decide(queries, kv.length);
    attention_.run(query.data(), kv, out.data(), executor);
    ++step_;
    length_ = kv.length;
    for (index_t g = 0; g < shape_.kv_heads; ++g) account(g, queries);
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
    detail::check(kv, shape_);
    detail::require(kv.length >= length_, "KvView.length", kv.length,
                    [this] { return detail::text("at least the prompt's ", length_); });
    if constexpr (recycles) {
      attention_.reserve(kv);
      attention_.choose_from_prompt(prompt_, kv, length_, executor);
      std::fill(ages_.begin(), ages_.end(), index_t{0});
    }
    prompt_.clear();
  }

  /// Takes back all positions from `length` on (speculative decoding). If one of them had cost another its place in the
  /// recycle cache, the next step of that head is full. Decode steps are counted back, too.
  void truncate(index_t length) {
    detail::require_at_most(length, length_, "truncate: length");
    const index_t removed = length_ - length;
    prompt_.drop(removed);
    if (removed > 0 && prompt_.tokens() > 0) forget_last_prompt_token();
    attention_.truncate(length);
    for (index_t& age : ages_) age = std::max(age - removed, index_t{0});
    step_ = std::max(step_ - removed, index_t{0});
    length_ = length;
  }
  /// Takes back the last `tokens` positions.
  void rollback(index_t tokens) {
    detail::require_at_most(tokens, length_, "rollback: tokens");
    truncate(length_ - tokens);
  }
  /// As newly made, with the memory kept.
  void clear() {
    schedule_ = initial_schedule_;
    attention_.clear(initial_selection_);
    prompt_.clear();
    std::fill(ages_.begin(), ages_.end(), index_t{0});
    std::fill(full_queries_.begin(), full_queries_.end(), 0.0F);
    std::fill(statistics_.heads.begin(), statistics_.heads.end(), HeadStatistics{});
    step_ = 0;
    length_ = 0;
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
  const Policy& schedule() const noexcept { return schedule_; }
  /// The kind of the last step of a KV head.
  StepKind last_step(index_t kv_head) const { return attention_.heads()[checked_head(kv_head)].kind; }
  /// The positions that a KV head holds for the next recycled step, ascending. Empty before prepare() or the first
  /// step.
  std::vector<index_t> recycled_positions(index_t kv_head) const {
    return recycles ? attention_.cache().held(checked_head(kv_head)) : std::vector<index_t>{};
  }

 private:
  static constexpr bool recycles = detail::recycles<Policy>;

  index_t checked_head(index_t kv_head) const {
    detail::require(kv_head >= 0 && kv_head < shape_.kv_heads, "kv_head", kv_head,
                    [&] { return detail::text("0 to ", shape_.kv_heads - 1); });
    return kv_head;
  }
  /// The arguments of a step or a prefill of `tokens` tokens.
  void check(std::span<const float> queries, const KvView<T>& kv, std::span<float> out, index_t tokens,
             std::span<const float> compared) const {
    detail::require_size(queries.size(), tokens * shape_.query_size(), "query.size()",
                         "query_heads * head_dim for each token");
    detail::require_size(out.size(), tokens * shape_.output_size(), "out.size()",
                         "query_heads * value_dim for each token");
    detail::check_compared(compared, shape_);
    detail::check(kv, shape_, length_);
    detail::require(
        length_ == 0 ? kv.length >= tokens : kv.length == length_ + tokens, "KvView.length", kv.length, [&] {
          return detail::text(
              length_ + tokens, ": ", length_, " positions so far and ", tokens,
              " new, whose rows are in the view (truncate() takes positions back, observe() skips a prompt)");
        });
  }

  /// A chunk of the prompt: its last token counts as a full step.
  void remember(std::span<const float> queries, index_t length, std::span<const float> compared) {
    prompt_.push(queries);
    attention_.see(queries);
    prompt_compared_ = !compared.empty();
    const std::span<const float> last = compared.empty() ? queries.last(full_query_count()) : compared;
    std::copy(last.begin(), last.end(), full_queries_.begin());
    for (auto& head : attention_.heads()) head.must_refresh = true;
    step_ = 0;
    length_ = length;
  }
  /// The prompt ends earlier: the token that is now its last counts as the full step. What the host gave for comparison
  /// is known of the removed one alone; NaN is similar to nothing, which leads to a full step.
  void forget_last_prompt_token() {
    if (prompt_compared_) {
      std::fill(full_queries_.begin(), full_queries_.end(), std::numeric_limits<float>::quiet_NaN());
    } else {
      std::copy_n(prompt_.query(prompt_.tokens() - 1), full_queries_.size(), full_queries_.data());
    }
  }
  std::size_t full_query_count() const { return static_cast<std::size_t>(full_queries_.size()); }

  /// Asks the schedule, once for the layer or for every KV head. A refresh is sketched where that can be.
  void decide(std::span<const float> queries, index_t length) {
    StepInfo info{.step = step_ + 1,
                  .length = length,
                  .layer = options_.layer,
                  .kv_heads = shape_.kv_heads,
                  .head_dim = shape_.head_dim,
                  .queries = queries,
                  .full_queries = {full_queries_.data(), full_query_count()}};
    if constexpr (detail::per_head<Policy>) {
      for (index_t g = 0; g < shape_.kv_heads; ++g) {
        info.kv_head = g;
        info.age = ages_[g] + 1;
        info.queries = group_of(queries, g);
        info.full_queries = group_of({full_queries_.data(), full_query_count()}, g);
        kinds_[g] = schedule_.decide(info);
      }
    } else {
      info.age = *std::max_element(ages_.begin(), ages_.end()) + 1;
      std::fill(kinds_.begin(), kinds_.end(), schedule_.decide(info));
    }
    for (index_t g = 0; g < shape_.kv_heads; ++g) {
      auto& head = attention_.heads()[g];
      head.kind = head.must_refresh || !recycles ? StepKind::full : kinds_[g];
      if (head.kind != StepKind::recycled)
        head.kind = attention_.sketches(g, length) ? StepKind::sketched : StepKind::full;
    }
  }
  std::span<const float> group_of(std::span<const float> queries, index_t g) const {
    const auto size = static_cast<std::size_t>(shape_.group() * shape_.head_dim);
    return queries.subspan(static_cast<std::size_t>(g) * size, size);
  }

  /// Ages, statistics, and what the schedule learns: on the calling thread, in the order of the heads.
  void account(index_t g, std::span<const float> queries) noexcept {
    const auto& head = attention_.heads()[g];
    HeadStatistics& count = statistics_.heads[static_cast<std::size_t>(g)];
    count.rows_read += head.rows_read;
    count.bytes_read += head.bytes_read;
    if (head.kind == StepKind::recycled) {
      ++count.recycled_steps;
      ++ages_[g];
      return;
    }
    ++(head.kind == StepKind::sketched ? count.sketched_steps : count.full_steps);
    if (head.kind == StepKind::full && head.checked) {
      ++count.checked;
      count.sketched_mass += static_cast<double>(head.sketched_mass);
    }
    ages_[g] = 0;
    const std::span<const float> group = group_of(queries, g);
    std::copy(group.begin(), group.end(), full_queries_.data() + g * shape_.group() * shape_.head_dim);
    if (!head.measured) return;
    ++count.measured;
    count.retained_mass += static_cast<double>(head.retained_mass);
    if constexpr (requires(Policy & policy, const Refresh& refresh) { policy.observe(refresh); }) {
      schedule_.observe(Refresh{step_, g, shape_.kv_heads, head.retained_mass});
    }
  }

  Shape shape_;
  LayerOptions options_;
  Policy initial_schedule_;
  Keep initial_selection_;
  Policy schedule_;
  TokenAttention<T, Keep, recycles> attention_;
  PromptWindow prompt_;
  bool prompt_compared_ = false;  // full_queries_ holds what the host gave for comparison, not a query
  Array<StepKind> kinds_;         // [kv_heads]: what the schedule decided
  Array<index_t> ages_;           // [kv_heads]: steps since the last full one
  Array<float> full_queries_;     // [query_heads, head_dim]: of every head's last full step
  index_t step_ = 0;
  index_t length_ = 0;
  LayerStatistics statistics_;
};

}  // namespace recycled::inline RECYCLED_ABI
