#pragma once

#include <memory>
#include <vector>

#include "recycled/schedule/budget.hpp"

namespace recycled::inline RECYCLED_ABI {

/// Reads a given share of full attention's bytes on average, and the KV heads of all layers that share the budget
/// compete for it: a head refreshes when it expects to have lost more than the budget allows for. Each refresh measures
/// the attention mass that the old set had lost, and so a head learns how much it loses as its queries turn away.
/// (Not the paper's.)
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
  };
  std::vector<Head> heads = {};  ///< [kv_heads]; empty at first, and an earlier sequence's spare a new one its learning

  static constexpr bool per_head = true;

  StepKind decide(const StepInfo& info) {
    if (static_cast<index_t>(heads.size()) < info.kv_heads) reserve(info.kv_heads);
    Head& head = heads[static_cast<std::size_t>(info.kv_head)];
    head.last_turn = 1 - least_cosine(info.queries, info.full_queries, info.head_dim);
    // A query that is no number takes the safe way.
    if (head.last_turn != head.last_turn || is_overdue(info, longest)) return StepKind::full;
    const float loss = std::min(1.0F, head.last_turn * head.loss / (head.turn + least_turn));
    return loss >= budget->allowed_loss() ? StepKind::full : StepKind::recycled;
  }
  void reserve(index_t kv_heads) { heads.resize(static_cast<std::size_t>(kv_heads)); }
  void observe(const Refresh& refresh) noexcept {
    Head& head = heads[static_cast<std::size_t>(refresh.kv_head)];
    const float loss = 1 - refresh.retained_mass;
    if (loss != loss || head.last_turn != head.last_turn) return;
    head.loss += news * (loss - head.loss);
    head.turn += news * (head.last_turn - head.turn);
  }
  void spent(const Cost& cost) { budget->account(cost); }
  template <class Io>
  void transfer(Io& io) {
    io(heads);
  }
  void validate() const {
    detail::require(budget != nullptr, "Budgeted.budget", "nullptr", "a budget: std::make_shared<Budget>(share)");
    detail::require(longest >= 1, "Budgeted.longest", longest, "at least 1");
    for (const Head& head : heads) {
      detail::require(head.loss >= 0 && head.loss <= 1, "Budgeted.heads.loss", head.loss, "0 to 1");
      detail::require(head.turn >= 0 && head.turn <= most_turn, "Budgeted.heads.turn", head.turn, "0 to 2");
    }
  }

 private:
  static constexpr float least_turn = 1e-6F;
  static constexpr float most_turn = 2.001F;  // 2, and what rounding makes of it
  static constexpr float news = 0.1F;         // share of the latest refresh in what is known
};

}  // namespace recycled::inline RECYCLED_ABI
