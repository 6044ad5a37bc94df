// One layer's attention, whatever the type of the rows that the host keeps.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "../../schedules.hpp"
#include "memory.hpp"
#include "threads.hpp"

namespace plugin {

using recycled::index_t;

/// A schedule for whole layers that is chosen when the program runs.
struct RuntimeSchedule {
  examples::AnySchedule schedule;

  recycled::StepKind decide(const recycled::StepInfo& info) {
    return std::visit([&](auto& chosen) { return chosen.decide(info); }, schedule);
  }
};

/// The same for those that decide head by head.
struct RuntimeHeadSchedule {
  std::variant<recycled::SelfCalibrating, recycled::Budgeted> schedule;
  static constexpr bool per_head = true;

  recycled::StepKind decide(const recycled::StepInfo& info) {
    return std::visit([&](auto& chosen) { return chosen.decide(info); }, schedule);
  }
  void reserve(index_t kv_heads) {
    std::visit([&](auto& chosen) { chosen.reserve(kv_heads); }, schedule);
  }
  void observe(const recycled::Refresh& refresh) noexcept {
    std::visit([&](auto& chosen) { chosen.observe(refresh); }, schedule);
  }
  void spent(const recycled::Cost& cost) noexcept {
    if (auto* budgeted = std::get_if<recycled::Budgeted>(&schedule)) budgeted->spent(cost);
  }
};

/// Recycled's layer for a type of rows. Queries are [token, head, dim], and so is what it writes.
class Attention {
 public:
  virtual ~Attention() = default;
  virtual void prefill(std::span<const float> queries, const Memory&, const Cells&, std::span<float> out, Threads&) = 0;
  virtual void step(std::span<const float> query, const Memory&, const Cells&, std::span<float> out, Threads&) = 0;
  /// The prompt's last queries, which choose the first set.
  virtual void observe(std::span<const float> queries, index_t length) = 0;
  virtual void clear() = 0;
  virtual index_t length() const = 0;
  virtual recycled::HeadStatistics statistics() const = 0;
};

template <recycled::Scalar T, recycled::Schedule Policy, recycled::Selection Keep>
class AttentionOf final : public Attention {
 public:
  AttentionOf(const recycled::Shape& shape, const recycled::LayerOptions& options, const Policy& policy,
              const Keep& selection, std::shared_ptr<recycled::Scratch> scratch)
      : layer_(shape, options, policy, selection) {
    layer_.share(std::move(scratch));
  }

  void prefill(std::span<const float> queries, const Memory& memory, const Cells& cells, std::span<float> out,
               Threads& threads) override {
    layer_.prefill(queries, view(memory, cells), out, threads);
  }
  void step(std::span<const float> query, const Memory& memory, const Cells& cells, std::span<float> out,
            Threads& threads) override {
    layer_.step(query, view(memory, cells), out, threads);
  }
  void observe(std::span<const float> queries, index_t length) override { layer_.observe(queries, length); }
  void clear() override { layer_.clear(); }
  index_t length() const override { return layer_.length(); }
  recycled::HeadStatistics statistics() const override { return layer_.statistics().total(); }

 private:
  static recycled::KvView<T> view(const Memory& memory, const Cells& cells) {
    const auto elements = [](std::size_t bytes) { return static_cast<index_t>(bytes / sizeof(T)); };
    recycled::KvView<T> view{.keys = reinterpret_cast<const T*>(memory.keys),
                             .values = reinterpret_cast<const T*>(memory.values),
                             .key_strides = {elements(memory.key_cell), elements(memory.key_head)},
                             .value_strides = {elements(memory.value_cell), elements(memory.value_head)},
                             .length = cells.count,
                             .pages = {cells.table, 1}};
    if (cells.side_by_side) {
      view.keys += cells.table[0] * view.key_strides.position;
      view.values += cells.table[0] * view.value_strides.position;
      view.pages = {};
    }
    return view;
  }

  recycled::LayerAttention<T, Policy, Keep> layer_;
};

/// How many tokens an answer has, for baselines that want to know.
inline constexpr index_t expected_tokens = 256;

/// A layer for rows of a ggml type, which is one of the four that Recycled reads.
inline std::unique_ptr<Attention> make_attention(ggml_type type, const recycled::Shape& shape,
                                                 recycled::LayerOptions options, const examples::NamedSchedule& named,
                                                 const std::shared_ptr<recycled::Scratch>& scratch) {
  options.sketch = named.sketch();
  const auto of = [&]<recycled::Scalar T>(T) -> std::unique_ptr<Attention> {
    const auto make = [&](const auto& policy, const auto& keep) -> std::unique_ptr<Attention> {
      using Layer = AttentionOf<T, std::decay_t<decltype(policy)>, std::decay_t<decltype(keep)>>;
      return std::make_unique<Layer>(shape, options, policy, keep, scratch);
    };
    if (named.baseline) return make(recycled::NeverFull{}, named.baseline(options.capacity, expected_tokens));
    const recycled::TopK keep = named.selection();
    if (const auto* exact = std::get_if<recycled::AlwaysFull>(&named.schedule)) return make(*exact, keep);
    if (const auto* own = std::get_if<recycled::SelfCalibrating>(&named.schedule))
      return make(RuntimeHeadSchedule{*own}, keep);
    if (const auto* own = std::get_if<recycled::Budgeted>(&named.schedule))
      return make(RuntimeHeadSchedule{*own}, keep);
    return make(RuntimeSchedule{named.schedule}, keep);
  };
  switch (type) {
    case GGML_TYPE_F32:
      return of(float{});
    case GGML_TYPE_F16:
      return of(recycled::half{});
    case GGML_TYPE_BF16:
      return of(recycled::bfloat16{});
    case GGML_TYPE_Q8_0:
      return of(recycled::q8_0{});
    default:
      throw std::invalid_argument("rows of a type that Recycled does not read");
  }
}

}  // namespace plugin
