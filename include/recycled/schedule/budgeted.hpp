#pragma once

#include <memory>
#include <vector>

#include "recycled/schedule/budget.hpp"

namespace recycled::inline RECYCLED_ABI {

/// Reads a given share of full attention's bytes on average, and the KV heads of all layers that share the budget
/// compete for it: a head refreshes when that is worth the budget's price.
///
/// What a refresh is worth: each one measures the attention mass that the old set had lost, and so a head learns how
/// much it loses as its queries turn away. Say it loses l(i) in the i-th token since its refresh. To refresh now, at
/// the a-th, rather than to go on at this loss, gains the sum of l(a) - l(i): the index of a job that decays, by which
/// such jobs are best chosen (Whittle, 1988). A head that loses much at once is worth a refresh at every token as long
/// as the price is low, and none at all once it is high: it can't be helped by a few. (Not the paper's.)
struct Budgeted {
  /// Of all layers that compete. Copies of the schedule, and so of a layer or a decoder, share it.
  std::shared_ptr<Budget> budget;
  /// Steps from one refresh to the next at most, see SelfCalibrating.
  index_t longest = 64;

  /// What is known of a KV head.
  struct Head {
    float loss = 0.5F;    ///< mean mass lost at a refresh, of late
    float turn = 1;       ///< mean of 1 - cosine there: they give the loss of a turn
    float last_turn = 0;  ///< of the last token
    float lost = 0;       ///< since the last refresh: the sum of l(i),
    index_t age = 0;      ///< up to this i
  };
  std::vector<Head> heads = {};  ///< [kv_heads]; empty at first, and an earlier sequence's spare a new one its learning

  static constexpr bool per_head = true;

  StepKind decide(const StepInfo& info) {
    if (static_cast<index_t>(heads.size()) < info.kv_heads) reserve(info.kv_heads);
    Head& head = heads[static_cast<std::size_t>(info.kv_head)];
    // A refresh, or tokens that were taken back: of what was lost since, as much is left as there is of that time.
    if (info.age <= head.age) head.lost *= static_cast<float>(info.age - 1) / static_cast<float>(head.age);
    head.age = info.age;
    head.last_turn = 1 - least_cosine(info.queries, info.full_queries, info.head_dim);
    const index_t fewer = (info.layer * info.kv_heads + info.kv_head) % (longest / 4 + 1);
    // A query that is no number takes the safe way.
    if (head.last_turn != head.last_turn || info.age >= longest - fewer) return StepKind::full;
    const float loss = std::min(1.0F, head.last_turn * head.loss / (head.turn + least_turn));
    if (static_cast<float>(info.age) * loss - head.lost >= budget->price()) return StepKind::full;
    head.lost += loss;
    return StepKind::recycled;
  }
  void reserve(index_t kv_heads) { heads.resize(static_cast<std::size_t>(kv_heads)); }
  void observe(const Refresh& refresh) noexcept {
    Head& head = heads[static_cast<std::size_t>(refresh.kv_head)];
    const float loss = 1 - refresh.retained_mass;
    if (loss != loss || head.last_turn != head.last_turn) return;
    head.loss += news * (loss - head.loss);
    head.turn += news * (head.last_turn - head.turn);
  }
  void spent(const Cost& cost) noexcept { budget->account(cost); }
  void validate() const {
    detail::require(budget != nullptr, "Budgeted.budget", "nullptr", "a budget: std::make_shared<Budget>(share)");
    detail::require(longest >= 1, "Budgeted.longest", longest, "at least 1");
  }

 private:
  static constexpr float least_turn = 1e-6F;
  static constexpr float news = 0.1F;  // share of the latest refresh in what is known
};

}  // namespace recycled::inline RECYCLED_ABI
