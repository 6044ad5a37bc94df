// Attention as llama.cpp issues it to ggml: one ggml_flash_attn_ext node for a decode step of a layer, with llama.cpp's
// mask, its padding of the cache to 256 positions and its order to accumulate in float.
#pragma once

#include <ggml-cpp.h>
#include <ggml-cpu.h>
#include <ggml.h>
#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <stdexcept>
#include <utility>
#include <vector>

namespace peer {

using Unsupported = std::runtime_error;

struct Problem {
  ggml_type type = GGML_TYPE_F32;
  bool head_major = false;
  std::int64_t head_dim = 0;
  std::int64_t kv_heads = 0;
  std::int64_t group = 0;
  std::int64_t length = 0;   // positions that are attended
  std::int64_t queries = 1;  // of each head: the last positions
  std::int64_t layers = 1;
  int threads = 1;

  std::int64_t heads() const { return kv_heads * group; }
  std::int64_t room() const { return padded(length); }
  std::int64_t row_bytes() const { return static_cast<std::int64_t>(ggml_row_size(type, head_dim)); }
  std::int64_t layer_bytes() const { return 2 * room() * kv_heads * row_bytes(); }
  static std::int64_t padded(std::int64_t positions) { return (positions + 255) / 256 * 256; }
};

/// Fills tensors with rows of standard normal numbers, drawn from a few thousand that are encoded once.
class RandomRows {
 public:
  RandomRows(ggml_type type, std::int64_t head_dim, unsigned seed)
      : row_bytes_(ggml_row_size(type, head_dim)), encoded_(distinct * row_bytes_) {
    std::mt19937 generator(seed);
    std::normal_distribution<float> normal;
    std::vector<float> rows(distinct * static_cast<std::size_t>(head_dim));
    for (float& value : rows) value = normal(generator);
    ggml_quantize_chunk(type, rows.data(), encoded_.data(), 0, distinct, head_dim, nullptr);
  }

  void fill(ggml_tensor* tensor) {
    auto* const to = static_cast<std::byte*>(tensor->data);
    for (std::size_t at = 0; at < ggml_nbytes(tensor); at += row_bytes_) {
      const auto row = generator_() % distinct;
      std::memcpy(to + at, encoded_.data() + row * row_bytes_, row_bytes_);
    }
  }

 private:
  static constexpr std::size_t distinct = 4099;

  std::size_t row_bytes_;
  std::vector<std::byte> encoded_;
  std::mt19937_64 generator_;
};

/// Layers of KV memory, and the graphs of one step of each.
class Attention {
 public:
  explicit Attention(const Problem& problem) : problem_(problem), backend_(ggml_backend_cpu_init()) {
    ggml_threadpool_params parameters = ggml_threadpool_params_default(problem.threads);
    threads_.reset(ggml_threadpool_new(&parameters));
    ggml_backend_cpu_set_n_threads(backend_.get(), problem.threads);
    ggml_backend_cpu_set_threadpool(backend_.get(), threads_.get());

    const auto graphs = static_cast<std::size_t>(problem.layers * (1 + problem.queries / micro_batch));
    context_.reset(ggml_init(
        {graphs * (12 * ggml_tensor_overhead() + ggml_graph_overhead_custom(8, false)) + 65536, nullptr, true}));
    for (std::int64_t layer = 0; layer < problem.layers; ++layer) layers_.push_back(describe());
    buffer_.reset(ggml_backend_alloc_ctx_tensors(context_.get(), backend_.get()));
    if (!buffer_) throw Unsupported("not enough memory");
    // The same pages as the library's own arrays have. Advice: that it may fail is no matter.
    constexpr std::size_t huge_page = std::size_t{2} << 20;
    const auto base = reinterpret_cast<std::uintptr_t>(ggml_backend_buffer_get_base(buffer_.get()));
    const auto begin = (base + huge_page - 1) / huge_page * huge_page;
    const auto end = (base + ggml_backend_buffer_get_size(buffer_.get())) / huge_page * huge_page;
    if (begin < end) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
    write();
    for (std::int64_t layer = 0; layer < problem.layers; ++layer) step();
  }

  void step() {
    for (const Batch& batch : layers_[next_].batches) {
      if (ggml_backend_graph_compute(backend_.get(), batch.graph) != GGML_STATUS_SUCCESS) {
        throw Unsupported("ggml_backend_graph_compute failed");
      }
    }
    next_ = (next_ + 1) % layers_.size();
  }

  /// Where ggml has threads of its own instead of OpenMP's, they would go on polling.
  void rest() { ggml_threadpool_pause(threads_.get()); }

  /// The largest difference of the last layer's output to a naive computation in double, over some of its queries; and
  /// the largest output.
  std::pair<double, double> difference() const {
    double worst = 0, largest = 0;
    const Layer& layer = layers_.back();
    for (const Batch& batch : layer.batches) {
      for (std::int64_t query = 0; query < batch.queries; query += 61) {
        for (std::int64_t head = 0; head < problem_.heads(); ++head) {
          const auto row = (query * problem_.heads() + head) * problem_.head_dim;
          const auto expected = naive(layer, static_cast<const float*>(batch.query->data) + row, head / problem_.group,
                                      batch.visible - batch.queries + query + 1);
          for (std::int64_t d = 0; d < problem_.head_dim; ++d) {
            const double value = expected[static_cast<std::size_t>(d)];
            const double apart = std::abs(static_cast<const float*>(batch.out->data)[row + d] - value);
            // a NaN is the worst
            worst = apart <= worst ? worst : apart;
            largest = std::max(largest, std::abs(value));
          }
        }
      }
    }
    return {worst, largest};
  }

 private:
  /// llama.cpp's default for the tokens that one graph takes.
  static constexpr std::int64_t micro_batch = 512;

  struct Batch {
    std::int64_t queries = 0;
    std::int64_t visible = 0;  // positions up to the last query's
    ggml_tensor *query = nullptr, *mask = nullptr, *out = nullptr;
    ggml_cgraph* graph = nullptr;
  };
  struct Layer {
    ggml_tensor *keys = nullptr, *values = nullptr;  // as they lie in memory
    std::vector<Batch> batches;
  };
  struct FreeThreads {
    void operator()(ggml_threadpool* threads) const { ggml_threadpool_free(threads); }
  };

  Layer describe() {
    ggml_context* const context = context_.get();
    const std::int64_t dim = problem_.head_dim, heads = problem_.kv_heads, room = problem_.room();
    Layer layer;
    for (ggml_tensor** storage : {&layer.keys, &layer.values}) {
      *storage = problem_.head_major ? ggml_new_tensor_3d(context, problem_.type, dim, room, heads)
                                     : ggml_new_tensor_3d(context, problem_.type, dim, heads, room);
    }
    const auto rows = [&](ggml_tensor* storage, std::int64_t positions) {
      const auto [position, head] = problem_.head_major ? std::pair(1, 2) : std::pair(2, 1);
      return ggml_view_3d(context, storage, dim, positions, heads, storage->nb[position], storage->nb[head], 0);
    };
    for (std::int64_t begin = 0; begin < problem_.queries; begin += micro_batch) {
      Batch batch{.queries = std::min(micro_batch, problem_.queries - begin)};
      batch.visible = problem_.length - problem_.queries + begin + batch.queries;
      const auto positions = Problem::padded(batch.visible);
      batch.query = ggml_new_tensor_3d(context, GGML_TYPE_F32, dim, problem_.heads(), batch.queries);
      batch.mask = ggml_new_tensor_2d(context, GGML_TYPE_F16, positions, batch.queries);
      batch.out =
          ggml_flash_attn_ext(context, ggml_permute(context, batch.query, 0, 2, 1, 3), rows(layer.keys, positions),
                              rows(layer.values, positions), batch.mask, 1 / std::sqrt(static_cast<float>(dim)), 0, 0);
      ggml_prec_set_acc(batch.out, GGML_PREC_F32);
      batch.graph = ggml_new_graph_custom(context, 8, false);
      ggml_build_forward_expand(batch.graph, batch.out);
      layer.batches.push_back(batch);
    }
    return layer;
  }

  void write() {
    RandomRows rows(problem_.type, problem_.head_dim, 1), queries(GGML_TYPE_F32, problem_.head_dim, 2);
    for (const Layer& layer : layers_) {
      rows.fill(layer.keys);
      rows.fill(layer.values);
      for (const Batch& batch : layer.batches) {
        queries.fill(batch.query);
        auto* const mask = static_cast<ggml_fp16_t*>(batch.mask->data);
        for (std::int64_t query = 0; query < batch.queries; ++query) {
          const auto visible = batch.visible - batch.queries + query + 1;
          ggml_fp16_t* const row = mask + query * batch.mask->ne[0];
          std::fill_n(row, visible, ggml_fp32_to_fp16(0));
          std::fill(row + visible, row + batch.mask->ne[0], ggml_fp32_to_fp16(-std::numeric_limits<float>::infinity()));
        }
      }
    }
  }

  std::vector<double> row(const ggml_tensor* storage, std::int64_t head, std::int64_t position) const {
    const auto index = problem_.head_major ? head * problem_.room() + position : position * problem_.kv_heads + head;
    const auto* const from = static_cast<const std::byte*>(storage->data) + index * problem_.row_bytes();
    std::vector<float> decoded(static_cast<std::size_t>(problem_.head_dim));
    if (problem_.type == GGML_TYPE_F32) {
      std::memcpy(decoded.data(), from, decoded.size() * sizeof(float));
    } else {
      ggml_get_type_traits(problem_.type)->to_float(from, decoded.data(), problem_.head_dim);
    }
    return {decoded.begin(), decoded.end()};
  }

  std::vector<double> naive(const Layer& layer, const float* query, std::int64_t head, std::int64_t visible) const {
    std::vector<double> out(static_cast<std::size_t>(problem_.head_dim));
    double sum = 0;
    for (std::int64_t position = 0; position < visible; ++position) {
      const auto key = row(layer.keys, head, position), value = row(layer.values, head, position);
      double score = 0;
      for (std::size_t d = 0; d < key.size(); ++d) score += query[d] * key[d];
      const double weight = std::exp(score / std::sqrt(static_cast<double>(problem_.head_dim)));
      sum += weight;
      for (std::size_t d = 0; d < out.size(); ++d) out[d] += weight * value[d];
    }
    for (double& o : out) o /= sum;
    return out;
  }

  Problem problem_;
  ggml_backend_ptr backend_;
  std::unique_ptr<ggml_threadpool, FreeThreads> threads_;
  ggml_context_ptr context_;
  ggml_backend_buffer_ptr buffer_;
  std::vector<Layer> layers_;
  std::size_t next_ = 0;
};

}  // namespace peer
