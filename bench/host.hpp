// A pretended model: layers whose KV memory together is larger than any cache, stepped through in turn as a decoder
// does.
#pragma once

#include <array>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "machine.hpp"

namespace bench {

/// What is measured: a layer's shape and the host's memory for it.
struct Case {
  recycled::Shape shape;
  index_t length = 8192;
  index_t capacity = 1024;
  int threads = 1;
  bool position_major = false;  ///< [position, head, dim], else [head, position, dim]

  /// Multiply-adds of one token's full attention count twice.
  double flops() const {
    return 2.0 * static_cast<double>(length * shape.query_heads * (shape.head_dim + shape.value_dim));
  }
};

template <class T>
double row_bytes(const recycled::Shape& shape) {
  return static_cast<double>(recycled::kernels::row_bytes<T>(shape.head_dim + shape.value_dim));
}

/// Standard normal floats, repeated from a block of 2^20: quick to make.
inline std::vector<float> normals(index_t count, unsigned seed = 7) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<std::size_t>(count));
  const std::size_t fresh = std::min(values.size(), std::size_t{1} << 20);
  std::generate_n(values.begin(), fresh, [&] { return normal(generator); });
  for (std::size_t i = fresh; i < values.size(); ++i) values[i] = values[i - fresh];
  return values;
}

/// The KV memories of several layers, with room for the tokens that are decoded, all of the same random numbers: a
/// layer may be shown any of them.
template <class T>
class Memories {
 public:
  static constexpr index_t decode_steps = 1024;

  Memories(const Case& c, index_t count) : case_(c), room_(c.length + decode_steps) {
    // Rows begin anywhere in a store of values, scattered: no two of a head's are alike.
    constexpr index_t stored = index_t{1} << 20;
    constexpr index_t per_element = recycled::values_per_element<T>;
    const index_t row = c.shape.head_dim / per_element;
    recycled::Array<T> store(stored / per_element + row);
    recycled::encode(normals(store.size() * per_element).data(), store.size() * per_element, store.data());
    const auto fill = [&](recycled::Array<T>& memory, index_t step) {
      memory.resize(room_ * c.shape.kv_heads * row);
      for (index_t r = 0; r < room_ * c.shape.kv_heads; ++r) {
        std::copy_n(store.data() + r * step % (stored / per_element), row, memory.data() + r * row);
      }
    };
    memories_.resize(static_cast<std::size_t>(count));
    for (auto& [keys, values] : memories_) {
      fill(keys, 40503);
      fill(values, 25717);
    }
  }

  index_t room() const { return room_; }
  recycled::KvView<T> view(index_t i, index_t length) const {
    const auto& [keys, values] = memories_[static_cast<std::size_t>(i) % memories_.size()];
    if (case_.position_major) {
      return recycled::KvView<T>::position_major(keys.data(), values.data(), case_.shape, length);
    }
    return recycled::KvView<T>::head_major(keys.data(), values.data(), case_.shape, length, room_);
  }

 private:
  struct Memory {
    recycled::Array<T> keys;
    recycled::Array<T> values;
  };
  Case case_;
  index_t room_;
  std::vector<Memory> memories_;
};

/// Queries that turn from token to token, a circle in 160 and 22.5 degrees in ten tokens: a refresh after ten replaces
/// .4 of a set where K = L / 8, .2 where K = L / 2 and .5 where K = L / 64. (On activations of SmolLM2-135M it is .2 in
/// early layers and .6 in late ones.)
class TurningQuery {
 public:
  explicit TurningQuery(const recycled::Shape& shape) {
    const std::vector<float> from = normals(shape.query_size(), 8), to = normals(shape.query_size(), 9);
    for (std::size_t t = 0; t < queries_.size(); ++t) {
      const float angle = 6.2831853F * static_cast<float>(t) / static_cast<float>(queries_.size());
      const float cosine = std::cos(angle), sine = std::sin(angle);
      for (std::size_t d = 0; d < from.size(); ++d) queries_[t].push_back(cosine * from[d] + sine * to[d]);
    }
  }
  const std::vector<float>& operator()(index_t token) const {
    return queries_[static_cast<std::size_t>(token) % queries_.size()];
  }

 private:
  std::array<std::vector<float>, 160> queries_;
};

/// `layers` objects, used in turn; their sets are chosen, and their phases spread over `stride` tokens, so that any
/// stretch of the measurement holds full and recycled steps in their true proportion. Every full step, and every choice
/// by a sketch, reads the next of the memories. `tokens`: how far the query turns from one step to the next.
/// R: what rows are recycled as.
template <class T, class Policy, class R = T>
class Layers {
 public:
  Layers(const Case& c, const Memories<T>& memories, const TurningQuery& query, index_t layers, Policy policy,
         index_t stride, index_t tokens, recycled::ThreadPool& pool, const recycled::SketchOptions& sketch = {})
      : case_(c),
        memories_(memories),
        query_(query),
        tokens_(tokens),
        out_(static_cast<std::size_t>(c.shape.output_size())) {
    const recycled::LayerOptions options{.capacity = c.capacity, .max_length = memories.room(), .sketch = sketch};
    layers_.reserve(static_cast<std::size_t>(layers));
    for (index_t i = 0; i < layers; ++i) {
      // A pool would spread what is high by chance in a sketch's scores.
      layers_.emplace_back(c.shape, options, policy, recycled::TopK{.pool = sketch.coordinates > 0 ? 1 : 7});
      layers_.back().share(scratch_);
      layers_.back().observe(query(0), c.length);
      for (index_t phase = 0; phase <= i % stride; ++phase) step(i, pool);
    }
    before_ = total();
  }

  /// One decode step of the layer whose turn it is.
  void step(recycled::ThreadPool& pool) {
    step(next_, pool);
    next_ = (next_ + 1) % static_cast<index_t>(layers_.size());
    ++steps_;
  }
  /// Bytes of KV rows that a step has read so far, on average.
  double bytes_a_step() const {
    return static_cast<double>(total().bytes_read - before_.bytes_read) /
           static_cast<double>(std::max(steps_, index_t{1}));
  }

 private:
  void step(index_t i, recycled::ThreadPool& pool) {
    auto& layer = layers_[static_cast<std::size_t>(i)];
    if (layer.length() == memories_.room()) layer.truncate(case_.length);
    const index_t token = layer.length() - case_.length;
    layer.step(query_(token * tokens_), memories_.view(memory_, layer.length() + 1), out_, pool);
    if (layer.last_step(0) != recycled::StepKind::recycled) ++memory_;
    benchmark::DoNotOptimize(out_.data());
  }
  recycled::HeadStatistics total() const {
    recycled::HeadStatistics sum;
    for (const auto& layer : layers_) sum += layer.statistics().total();
    return sum;
  }

  Case case_;
  const Memories<T>& memories_;
  const TurningQuery& query_;
  index_t tokens_;
  std::vector<float> out_;
  std::shared_ptr<recycled::Scratch> scratch_ = std::make_shared<recycled::Scratch>();
  std::vector<recycled::LayerAttention<T, Policy, recycled::TopK, R>> layers_;
  recycled::HeadStatistics before_;
  index_t next_ = 0;
  index_t steps_ = 0;
  index_t memory_ = 0;  // whose turn it is
};

}  // namespace bench
