// A pretended model: layers whose KV memory together is larger than any cache, stepped through in turn as a decoder
// does.
#pragma once

#include <memory>
#include <random>
#include <string>
#include <vector>

#include "machine.hpp"

namespace bench {

/// One row of the table.
struct Case {
  recycled::Shape shape;
  index_t length = 8192;
  index_t capacity = 1024;
  int threads = 1;

  std::string name() const {
    return "/dim:" + std::to_string(shape.head_dim) + "/kv_heads:" + std::to_string(shape.kv_heads) +
           "/group:" + std::to_string(shape.group()) + "/L:" + std::to_string(length) +
           "/K:" + std::to_string(capacity) + "/threads:" + std::to_string(threads);
  }
};

template <class T>
double row_bytes(const recycled::Shape& shape) {
  return static_cast<double>((shape.head_dim + shape.value_dim) / recycled::values_per_element<T>) * sizeof(T);
}

/// Standard normal floats, repeated from a block of 2^16: quick to make, and dull to a cache all the same.
inline std::vector<float> normals(index_t count) {
  std::mt19937 generator(7);
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<std::size_t>(count));
  const std::size_t fresh = std::min(values.size(), std::size_t{1} << 16);
  std::generate_n(values.begin(), fresh, [&] { return normal(generator); });
  for (std::size_t i = fresh; i < values.size(); ++i) values[i] = values[i - fresh];
  return values;
}

/// `layers` objects over `memories` KV memories [head, position, dim] of random numbers, used in turn.
template <class T, class Policy>
class Layers {
 public:
  Layers(const Case& c, index_t layers, index_t memories, Policy policy)
      : case_(c), room_(c.length + decode_steps), query_(normals(c.shape.query_size())), out_(query_.size()) {
    const index_t dim = c.shape.head_dim;
    const index_t row = dim / recycled::values_per_element<T>;
    const auto rows = normals(dim * 1024);
    memories_.resize(static_cast<std::size_t>(memories));
    for (Memory& memory : memories_) {
      memory.keys.resize(room_ * c.shape.kv_heads * row);
      memory.values.resize(room_ * c.shape.kv_heads * row);
      for (index_t r = 0; r < room_ * c.shape.kv_heads; ++r) {
        recycled::encode(rows.data() + (r * 37 % 1024) * dim, dim, memory.keys.data() + r * row);
        recycled::encode(rows.data() + (r * 51 % 1024) * dim, dim, memory.values.data() + r * row);
      }
    }
    const recycled::LayerOptions options{.capacity = c.capacity, .max_length = room_};
    layers_.reserve(static_cast<std::size_t>(layers));
    for (index_t i = 0; i < layers; ++i) {
      layers_.emplace_back(c.shape, options, policy);
      layers_.back().observe(query_, c.length);
    }
  }

  index_t size() const { return static_cast<index_t>(layers_.size()); }
  recycled::HeadStatistics total() const {
    recycled::HeadStatistics sum;
    for (const auto& layer : layers_) sum += layer.statistics().total();
    return sum;
  }

  /// One decode step of layer i, counted modulo the number of layers.
  void step(index_t i, recycled::ThreadPool& pool) {
    auto& layer = layers_[static_cast<std::size_t>(i % size())];
    const Memory& memory = memories_[static_cast<std::size_t>(i % size()) % memories_.size()];
    if (layer.length() == room_) layer.truncate(case_.length);
    const auto view = recycled::KvView<T>::head_major(memory.keys.data(), memory.values.data(), case_.shape,
                                                      layer.length() + 1, room_);
    layer.step(query_, view, out_, pool);
    benchmark::DoNotOptimize(out_.data());
  }

 private:
  static constexpr index_t decode_steps = 1024;
  struct Memory {
    recycled::Array<T> keys;
    recycled::Array<T> values;
  };

  Case case_;
  index_t room_;
  std::vector<float> query_;
  std::vector<float> out_;
  std::vector<Memory> memories_;
  std::vector<recycled::LayerAttention<T, Policy>> layers_;
};

}  // namespace bench
