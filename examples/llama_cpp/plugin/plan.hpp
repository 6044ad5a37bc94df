// What the masks of a graph mean: which tokens are computed together, and whose they are.
#pragma once

#include <map>

#include "node.hpp"
#include "policy.hpp"
#include "sequences.hpp"

namespace plugin {

/// A chain of tokens, and whose they are.
struct Part {
  Chain chain;
  std::shared_ptr<Sequence> sequence;  ///< null: nothing is remembered
  bool recycles = false;               ///< a token that continues its sequence
  std::uint64_t version = 0;           ///< of the sequence with this token as its last
  bool side_by_side = false;           ///< the chain's cells
};

/// What a mask means, for all layers that share it.
struct Plan {
  const void* mask = nullptr;
  std::vector<CellSet> rows;  ///< of the mask, as it was: [its streams, tokens]
  index_t cells = 0;
  index_t tokens = 0;
  bool remembers = false;           ///< a sequence: a layer that comes again is the next token's
  std::vector<const void*> layers;  ///< if it remembers: that have been computed by it; none twice
  std::vector<std::vector<Part>> streams;
};

/// The plans of the last masks, and the conversations that they belong to.
class Plans {
 public:
  /// Forgets all of them.
  void set_policy(const Policy& policy) {
    policy_ = policy;
    plans_.clear();
    caches_.clear();
  }
  const Policy& policy() const { return policy_; }

  /// The plan for a node, or null if the host has to compute it. Counts restarts.
  Plan* find(const Node& node, Counts& counts) {
    const void* const mask = node.mask() == nullptr ? nullptr : node.mask()->data;
    const auto known = std::find_if(plans_.begin(), plans_.end(), [&](const Plan& plan) { return plan.mask == mask; });
    if (known != plans_.end()) {
      const bool again = known->remembers &&
                         std::find(known->layers.begin(), known->layers.end(), node.cache()) != known->layers.end();
      if (mask != nullptr && !again && same_mask(*known, node)) return &*known;
      plans_.erase(known);
    }
    Plan plan{.mask = mask, .cells = node.cells(), .tokens = node.tokens()};
    if (!(mask == nullptr ? understand_none(node, plan) : understand(node, plan, counts))) return nullptr;
    if (plans_.size() == most_plans) plans_.erase(plans_.begin());
    return &plans_.emplace_back(std::move(plan));
  }

 private:
  /// Layers that share masks, known by the cache of the first: one cache of the host, or what a window leaves of it.
  struct Cache {
    index_t cells = 0;
    std::map<index_t, Sequences> streams;
  };

  /// Token `row` of a mask's streams one after the other.
  static const std::uint16_t* mask_row(const Node& node, index_t row) {
    const ggml_tensor* const mask = node.mask();
    return reinterpret_cast<const std::uint16_t*>(static_cast<const char*>(mask->data) +
                                                  static_cast<std::size_t>(row / node.tokens()) * mask->nb[3] +
                                                  static_cast<std::size_t>(row % node.tokens()) * mask->nb[1]);
  }
  static bool same_mask(const Plan& plan, const Node& node) {
    const index_t rows = node.mask()->ne[3] * node.tokens();
    if (static_cast<index_t>(plan.rows.size()) != rows || plan.cells != node.cells() || plan.tokens != node.tokens() ||
        static_cast<index_t>(plan.streams.size()) != node.streams())
      return false;
    for (index_t r = 0; r < rows; ++r) {
      if (!plan.rows[static_cast<std::size_t>(r)].says(mask_row(node, r), node.cells())) return false;
    }
    return true;
  }

  bool understand(const Node& node, Plan& plan, Counts& counts) {
    plan.rows.resize(static_cast<std::size_t>(node.mask()->ne[3] * node.tokens()));
    for (std::size_t r = 0; r < plan.rows.size(); ++r) {
      if (!plan.rows[r].read(mask_row(node, static_cast<index_t>(r)), node.cells())) return false;
    }
    std::vector<std::vector<Chain>> chains;
    for (index_t s = 0; s < node.streams(); ++s) {
      const auto tokens = static_cast<std::size_t>(node.tokens());
      const std::size_t first = node.mask()->ne[3] == 1 ? 0 : static_cast<std::size_t>(s) * tokens;
      auto of_stream = Chains::of(std::span(plan.rows).subspan(first, tokens));
      if (!of_stream) return false;
      chains.push_back(std::move(*of_stream));
    }
    ++plan_number_;
    for (std::size_t s = 0; s < chains.size(); ++s) {
      std::vector<Part>& parts = plan.streams.emplace_back();
      for (Chain& chain : chains[s]) {
        parts.push_back(part_of(node, static_cast<index_t>(s), std::move(chain), counts));
        plan.remembers = plan.remembers || parts.back().sequence != nullptr;
      }
    }
    return true;
  }
  /// Every token sees every cell.
  static bool understand_none(const Node& node, Plan& plan) {
    Chain chain;
    for (index_t c = 0; c < node.cells(); ++c) chain.cells.push_back(static_cast<std::int32_t>(c));
    std::vector<Part> parts;
    for (chain.first = 0; chain.first < node.tokens(); ++chain.first)
      parts.push_back({.chain = chain, .side_by_side = true});
    plan.streams.assign(static_cast<std::size_t>(node.streams()), parts);
    return true;
  }

  Part part_of(const Node& node, index_t stream, Chain chain, Counts& counts) {
    Part part{.chain = std::move(chain)};
    part.side_by_side = side_by_side(part.chain.cells);
    const ggml_tensor* const cache = node.cache();
    if (!policy_.recycles() || cache == nullptr || part.chain.window > 0 || part.chain.cells.empty()) return part;
    Cache& of = caches_[cache];
    of.cells = cache->ne[1];
    // A smaller cache than others is that of a sliding window, and stays exact.
    for (const auto& [first_layer, other] : caches_) {
      if (other.cells > of.cells) return part;
    }
    const auto offset = static_cast<const char*>(node.keys()->data) - static_cast<const char*>(cache->data);
    const index_t first_stream = offset / static_cast<index_t>(node.keys()->nb[3]);
    const auto [sequence, continues] =
        of.streams[first_stream + stream].follow(part.chain, policy_.sequences, plan_number_);
    if (!continues) ++counts.restarts;
    if (sequence == nullptr) return part;
    part.sequence = sequence;
    part.version = sequence->version;
    part.recycles = continues && part.chain.tokens == 1 && static_cast<index_t>(sequence->cells.size()) >= policy_.from;
    return part;
  }
  static bool side_by_side(const std::vector<std::int32_t>& cells) {
    for (std::size_t i = 1; i < cells.size(); ++i) {
      if (cells[i] != cells[i - 1] + 1) return false;
    }
    return true;
  }

  static constexpr std::size_t most_plans = 4;

  Policy policy_;
  std::vector<Plan> plans_;
  std::uint64_t plan_number_ = 0;
  std::map<const void*, Cache> caches_;
};

}  // namespace plugin
