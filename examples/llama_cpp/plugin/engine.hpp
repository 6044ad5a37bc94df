// Computes the attention nodes of one host context, and remembers its conversations.
#pragma once

#include <map>
#include <tuple>

#include "node.hpp"
#include "policy.hpp"
#include "sequences.hpp"

namespace plugin {

/// One for each context of the host. Not to be used from two threads at a time.
class Engine {
 public:
  void set_threads(int count) { threads_.set_count(count); }
  void set_policy(const Policy& policy) {
    policy_ = policy;
    plans_.clear();
    caches_.clear();
  }
  const Counts& counts() const { return counts_; }
  void count_handed_back() { ++counts_.handed_back; }

  /// Writes the node's output. False, and nothing written, if the host has to compute it.
  bool compute(const Node& node) {
    Plan& plan = plan_for(node);
    if (!plan.understood) return false;
    const bool first_layer = plan.layers.empty();
    plan.layers.push_back(node.cache());
    for (std::size_t s = 0; s < plan.streams.size(); ++s) {
      for (const Part& part : plan.streams[s]) run(node, static_cast<index_t>(s), part, first_layer);
    }
    return true;
  }

 private:
  /// A chain of tokens, and whose they are.
  struct Part {
    Chain chain;
    std::shared_ptr<Sequence> sequence;  ///< null: nothing is remembered
    bool recycles = false;               ///< a token that continues its sequence
    std::uint64_t version = 0;           ///< of the sequence with this token as its last
    bool side_by_side = false;
  };
  /// What a mask means, for all layers that share it.
  struct Plan {
    const void* mask = nullptr;
    std::vector<std::uint16_t> copy;
    index_t cells = 0;
    index_t tokens = 0;
    index_t stream_count = 0;
    bool remembers = false;           ///< a sequence: a layer that comes again is the next token's
    std::vector<const void*> layers;  ///< that have been computed by it; none twice
    std::vector<std::vector<Part>> streams;
    bool understood = false;
  };
  /// Layers that share masks, known by the cache of the first: one cache of the host, or what a window leaves of it.
  struct Cache {
    index_t cells = 0;
    std::map<index_t, Sequences> streams;
  };

  // ---- From masks to plans

  Plan& plan_for(const Node& node) {
    const void* const mask = node.mask() == nullptr ? nullptr : node.mask()->data;
    const auto known = std::find_if(plans_.begin(), plans_.end(), [&](const Plan& plan) { return plan.mask == mask; });
    if (known != plans_.end()) {
      const bool again = known->remembers &&
                         std::find(known->layers.begin(), known->layers.end(), node.cache()) != known->layers.end();
      if (mask != nullptr && !again && same_mask(*known, node)) return *known;
      plans_.erase(known);
    }
    if (plans_.size() == most_plans) plans_.erase(plans_.begin());
    Plan& plan = plans_.emplace_back(Plan{.mask = mask});
    plan.understood = mask == nullptr ? understand_none(node, plan) : understand(node, plan);
    return plan;
  }
  static std::size_t mask_halfs(const Node& node) { return static_cast<std::size_t>(ggml_nelements(node.mask())); }
  static bool same_mask(const Plan& plan, const Node& node) {
    return plan.copy.size() == mask_halfs(node) && plan.stream_count == node.streams() && plan.cells == node.cells() &&
           plan.tokens == node.tokens() &&
           std::memcmp(plan.copy.data(), node.mask()->data, plan.copy.size() * sizeof(std::uint16_t)) == 0;
  }

  bool understand(const Node& node, Plan& plan) {
    const ggml_tensor* const mask = node.mask();
    const auto* const halfs = static_cast<const std::uint16_t*>(mask->data);
    plan.copy.assign(halfs, halfs + mask_halfs(node));
    plan.cells = node.cells();
    plan.tokens = node.tokens();
    plan.stream_count = node.streams();
    ++plan_number_;
    for (index_t s = 0; s < node.streams(); ++s) {
      const auto* const rows = halfs + (mask->ne[3] == 1 ? 0 : s) * static_cast<index_t>(mask->nb[3] / sizeof(*halfs));
      auto chains = Chains::of(rows, node.cells(), node.tokens(), static_cast<index_t>(mask->nb[1] / sizeof(*halfs)));
      if (!chains) return false;
      std::vector<Part>& parts = plan.streams.emplace_back();
      for (Chain& chain : *chains) {
        parts.push_back(part_of(node, s, std::move(chain)));
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

  Part part_of(const Node& node, index_t stream, Chain chain) {
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
    if (!continues) ++counts_.restarts;
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

  // ---- From plans to outputs

  void run(const Node& node, index_t stream, const Part& part, bool first_layer) {
    const std::span<float> out = output(node, stream, part.chain);
    if (part.chain.cells.empty()) return std::fill(out.begin(), out.end(), 0.0F);
    const std::span<const float> queries = packed_queries(node, stream, part.chain);
    const Memory memory = memory_of(node, stream);
    // Where a later token of the batch has moved the sequence on, this one is exact.
    if (part.recycles && part.sequence->version == part.version)
      return step(node, *part.sequence, memory, queries, out, first_layer);
    const Cells cells{part.chain.cells.data(), static_cast<index_t>(part.chain.cells.size()), part.side_by_side};
    Attention& attention = exact(node, part.chain.window);
    attention.clear();
    if (part.chain.tokens == 1) {
      attention.step(queries, memory, cells, out, threads_);
      ++counts_.exact_steps;
    } else {
      attention.prefill(queries, memory, cells, out, threads_);
      counts_.prefill_tokens += static_cast<std::uint64_t>(part.chain.tokens);
    }
  }

  /// A token that continues its sequence, by what the layer remembers of it.
  void step(const Node& node, Sequence& sequence, const Memory& memory, std::span<const float> query,
            std::span<float> out, bool first_layer) {
    const Cells cells{sequence.cells.data(), static_cast<index_t>(sequence.cells.size()), sequence.side_by_side};
    RememberedLayer& layer = sequence.layers[node.cache()];
    // A share of the length: made anew, with a full step, where that has grown, or started again much smaller.
    const bool other_length = layer.room < cells.count || layer.room > 2 * cells.count;
    if (layer.attention == nullptr || (policy_.capacity.rows == 0 && other_length)) {
      const index_t room = std::min(cells.count + cells.count / 4, index_t{node.cache()->ne[1]});
      layer.attention =
          make_attention(node.keys()->type, node.shape(),
                         {.capacity = policy_.capacity.of(room, node.cache()->ne[1]), .attention = node.options()},
                         RuntimeSchedule{policy_.schedule.schedule}, scratch_);
      layer.room = room;
      layer.epoch = -1;
    }
    Attention& attention = *layer.attention;
    bool sound = layer.epoch == sequence.epoch && attention.length() == cells.count - 1;
    if (sound && !layer.contents.unchanged(memory, cells, first_layer, threads_)) {
      sound = false;
      ++sequence.epoch;
      ++counts_.rewritten;
    }
    if (!sound) {
      attention.clear();
      layer.contents.clear();
      layer.epoch = sequence.epoch;
    }
    const recycled::HeadStatistics before = attention.statistics();
    attention.step(query, memory, cells, out, threads_);
    layer.contents.note(memory, cells);
    count(before, attention.statistics(), node, cells.count);
  }
  void count(const recycled::HeadStatistics& before, const recycled::HeadStatistics& after, const Node& node,
             index_t length) {
    ++(after.full_steps > before.full_steps ? counts_.full_steps : counts_.recycled_steps);
    counts_.rows_read += after.rows_read - before.rows_read;
    counts_.rows_full += static_cast<std::uint64_t>(node.shape().kv_heads * length);
  }

  /// Layers of the same shape share one for exact attention: it remembers nothing.
  Attention& exact(const Node& node, index_t window) {
    recycled::AttentionOptions options = node.options();
    options.window = window;
    const recycled::Shape shape = node.shape();
    auto& attention = exact_[{node.keys()->type, shape.query_heads, shape.kv_heads, shape.head_dim, shape.value_dim,
                              options.scale, options.soft_cap, window}];
    if (attention == nullptr) {
      attention = make_attention(node.keys()->type, shape, {.attention = options}, recycled::AlwaysFull{}, scratch_);
    }
    return *attention;
  }

  static Memory memory_of(const Node& node, index_t stream) {
    const ggml_tensor *k = node.keys(), *v = node.values();
    const auto* keys = static_cast<const std::byte*>(k->data) + static_cast<std::size_t>(stream) * k->nb[3];
    const auto* values = static_cast<const std::byte*>(v->data) + static_cast<std::size_t>(stream) * v->nb[3];
    return {keys, values, k->nb[1], k->nb[2], v->nb[1], v->nb[2], ggml_row_size(k->type, k->ne[0])};
  }
  static std::span<float> output(const Node& node, index_t stream, const Chain& chain) {
    auto* const first = static_cast<char*>(node.out()->data) + static_cast<std::size_t>(stream) * node.out()->nb[3] +
                        static_cast<std::size_t>(chain.first) * node.out()->nb[2];
    return {reinterpret_cast<float*>(first), static_cast<std::size_t>(chain.tokens * node.shape().output_size())};
  }
  /// The chain's queries as [token, head, dim]: as they are or, where a host keeps them in another order, copied.
  std::span<const float> packed_queries(const Node& node, index_t stream, const Chain& chain) {
    const ggml_tensor* const q = node.queries();
    const auto row = [&](index_t token, index_t head) {
      return reinterpret_cast<const float*>(
          static_cast<const char*>(q->data) + static_cast<std::size_t>(stream) * q->nb[3] +
          static_cast<std::size_t>(chain.first + token) * q->nb[1] + static_cast<std::size_t>(head) * q->nb[2]);
    };
    const auto dim = static_cast<std::size_t>(q->ne[0]);
    const auto size = static_cast<std::size_t>(chain.tokens * q->ne[2]) * dim;
    if (q->nb[2] == dim * sizeof(float) && q->nb[1] == static_cast<std::size_t>(q->ne[2]) * q->nb[2]) {
      return {row(0, 0), size};
    }
    queries_.resize(size);
    auto place = queries_.begin();
    for (index_t t = 0; t < chain.tokens; ++t) {
      for (index_t h = 0; h < q->ne[2]; ++h) place = std::copy_n(row(t, h), dim, place);
    }
    return queries_;
  }

  static constexpr std::size_t most_plans = 4;

  Policy policy_;
  Threads threads_;
  Counts counts_ = {};
  std::vector<Plan> plans_;
  std::uint64_t plan_number_ = 0;
  std::map<const void*, Cache> caches_;
  std::map<std::tuple<ggml_type, index_t, index_t, index_t, index_t, float, float, index_t>, std::unique_ptr<Attention>>
      exact_;
  std::shared_ptr<recycled::Scratch> scratch_ = std::make_shared<recycled::Scratch>();
  std::vector<float> queries_;
};

}  // namespace plugin
