// Computes the attention nodes of one host context, and remembers its conversations.
#pragma once

#include <map>
#include <tuple>

#include "plan.hpp"

namespace plugin {

/// One for each context of the host. Not to be used from two threads at a time.
class Engine {
 public:
  void set_threads(int count) { threads_.set_count(count); }
  void set_policy(const Policy& policy) { plans_.set_policy(policy); }
  const Counts& counts() const { return counts_; }
  void count_handed_back() { ++counts_.handed_back; }

  /// Writes the node's output. False, and nothing written, if the host has to compute it.
  bool compute(const Node& node) {
    Plan* const plan = plans_.find(node, counts_);
    if (plan == nullptr) return false;
    const bool first_layer = plan->layers.empty();
    if (plan->remembers) plan->layers.push_back(node.cache());
    for (std::size_t s = 0; s < plan->streams.size(); ++s) {
      for (const Part& part : plan->streams[s]) run(node, static_cast<index_t>(s), part, first_layer);
    }
    return true;
  }

 private:
  void run(const Node& node, index_t stream, const Part& part, bool first_layer) {
    const std::span<float> out = output(node, stream, part.chain);
    if (part.chain.cells.empty()) return std::fill(out.begin(), out.end(), 0.0F);
    const std::span<const float> queries = packed_queries(node, stream, part.chain);
    const Memory memory = memory_of(node, stream);
    // Where a later token of the batch has moved the sequence on, this one is exact.
    if (part.recycles && part.sequence->version == part.version)
      return step(node, *part.sequence, memory, queries, out, first_layer);
    const Cells cells{part.chain.cells.data(), static_cast<index_t>(part.chain.cells.size()), part.side_by_side};
    // Else the first token's full step chooses, which costs as much as to choose by the prompt's last, and loses less.
    const index_t most = plans_.policy().schedule.prompt_queries();
    if (most > 1 && part.sequence != nullptr && part.sequence->version == part.version) {
      Sequence& sequence = *part.sequence;
      layer_of(sequence, node).prompt.add(queries, part.chain.tokens, most, cells.count, sequence.epoch);
    }
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

  static RememberedLayer& layer_of(Sequence& sequence, const Node& node) {
    const auto [place, added] = sequence.layers.try_emplace(node.cache());
    if (added) place->second.index = static_cast<index_t>(sequence.layers.size()) - 1;
    return place->second;
  }

  /// A token that continues its sequence, by what the layer remembers of it.
  void step(const Node& node, Sequence& sequence, const Memory& memory, std::span<const float> query,
            std::span<float> out, bool first_layer) {
    const Cells cells{sequence.cells.data(), static_cast<index_t>(sequence.cells.size()), sequence.side_by_side};
    RememberedLayer& layer = layer_of(sequence, node);
    const Policy& policy = plans_.policy();
    // A share of the length: made anew, with a full step, where that has grown, or started again much smaller.
    const bool other_length = layer.room < cells.count || layer.room > 2 * cells.count;
    if (layer.attention == nullptr || (policy.capacity.rows == 0 && other_length)) {
      const index_t room = std::min(cells.count + cells.count / 4, index_t{node.cache()->ne[1]});
      layer.attention = make_attention(node.keys()->type, node.shape(),
                                       {.capacity = policy.capacity.of(room, node.cache()->ne[1]),
                                        .attention = node.options(),
                                        .layer = layer.index},
                                       policy.schedule, scratch_);
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
      const std::span<const float> prompt = layer.prompt.before(cells.count - 1, sequence.epoch);
      if (!prompt.empty()) attention.observe(prompt, cells.count - 1);
      layer.prompt.clear();
    }
    const recycled::HeadStatistics before = attention.statistics();
    attention.step(query, memory, cells, out, threads_);
    layer.contents.note(memory, cells);
    count(before, attention.statistics(), node, cells.count);
  }
  void count(const recycled::HeadStatistics& before, const recycled::HeadStatistics& after, const Node& node,
             index_t length) {
    const recycled::Shape shape = node.shape();
    ++(after.full_steps > before.full_steps           ? counts_.full_steps
       : after.sketched_steps > before.sketched_steps ? counts_.sketched_steps
                                                      : counts_.recycled_steps);
    const auto rows = static_cast<std::uint64_t>(shape.kv_heads * length);
    counts_.rows_read += after.rows_read - before.rows_read;
    counts_.rows_full += rows;
    counts_.bytes_read += after.bytes_read - before.bytes_read;
    counts_.bytes_full +=
        rows * (ggml_row_size(node.keys()->type, shape.head_dim) + ggml_row_size(node.keys()->type, shape.value_dim));
  }

  /// Layers of the same shape share one for exact attention: it remembers nothing.
  Attention& exact(const Node& node, index_t window) {
    recycled::AttentionOptions options = node.options();
    options.window = window;
    const recycled::Shape shape = node.shape();
    auto& attention = exact_[{node.keys()->type, shape.query_heads, shape.kv_heads, shape.head_dim, shape.value_dim,
                              options.scale, options.soft_cap, window}];
    if (attention == nullptr) {
      attention =
          make_attention(node.keys()->type, shape, {.attention = options}, {"exact", recycled::AlwaysFull{}}, scratch_);
    }
    return *attention;
  }

  static Memory memory_of(const Node& node, index_t stream) {
    const ggml_tensor *k = node.keys(), *v = node.values();
    const auto* keys = static_cast<const std::byte*>(k->data) + static_cast<std::size_t>(stream) * k->nb[3];
    const auto* values = static_cast<const std::byte*>(v->data) + static_cast<std::size_t>(stream) * v->nb[3];
    return {keys,
            values,
            k->nb[1],
            k->nb[2],
            v->nb[1],
            v->nb[2],
            ggml_row_size(k->type, k->ne[0]),
            k->ne[0] > v->ne[0] ? ggml_row_size(k->type, v->ne[0]) : 0};
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

  Threads threads_;
  Counts counts_ = {};
  Plans plans_;
  std::map<std::tuple<ggml_type, index_t, index_t, index_t, index_t, float, float, index_t>, std::unique_ptr<Attention>>
      exact_;
  std::shared_ptr<recycled::Scratch> scratch_ = std::make_shared<recycled::Scratch>();
  std::vector<float> queries_;
};

}  // namespace plugin
