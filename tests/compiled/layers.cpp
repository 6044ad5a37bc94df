#include "compiled/layers.hpp"

namespace reference {
namespace {

using recycled::Scalar;

template <Scalar T, Scalar R, recycled::Schedule Policy>
class Behind final : public AnyLayer<T> {
 public:
  using typename AnyLayer<T>::Floats, typename AnyLayer<T>::View, typename AnyLayer<T>::Pool;

  Behind(const recycled::Shape& shape, const recycled::LayerOptions& options, const Policy& schedule,
         const recycled::TopK& selection)
      : layer_(shape, options, schedule, selection) {}

  std::unique_ptr<AnyLayer<T>> copy() const override { return std::make_unique<Behind>(*this); }
  void step(Floats query, const View& kv, std::span<float> out, Pool& pool, Floats compared) override {
    layer_.step(query, kv, out, pool, compared);
  }
  void prefill(Floats queries, const View& kv, std::span<float> out, Pool& pool) override {
    layer_.prefill(queries, kv, out, pool);
  }
  void observe(Floats queries, index_t length) override { layer_.observe(queries, length); }
  void prepare(const View& kv, Pool& pool) override { layer_.prepare(kv, pool); }
  void choose_positions(std::span<const index_t> positions, const View& kv, Pool& pool) override {
    if constexpr (chooses) layer_.choose_positions(positions, kv, pool);
  }
  void choose_by_scores(Floats scores, const View& kv, Pool& pool) override {
    if constexpr (chooses) layer_.choose_by_scores(scores, kv, pool);
  }
  void rollback(index_t tokens) override { layer_.rollback(tokens); }
  void save(std::ostream& stream) const override { layer_.save(stream); }
  void load(std::istream& stream) override { layer_.load(stream); }

  index_t length() const override { return layer_.length(); }
  recycled::StepKind last_step(index_t kv_head) const override { return layer_.last_step(kv_head); }
  std::vector<index_t> recycled_positions(index_t kv_head) const override { return layer_.recycled_positions(kv_head); }
  const recycled::LayerStatistics& statistics() const override { return layer_.statistics(); }
  AnySchedule schedule() const override {
    if constexpr (std::same_as<Policy, AnySchedule>) {
      return layer_.schedule();
    } else {
      return {layer_.schedule(), true};
    }
  }

 private:
  static constexpr bool chooses = recycled::detail::recycles<Policy>;
  recycled::LayerAttention<T, Policy, recycled::TopK, R> layer_;
};

}  // namespace

template <Scalar T, Scalar R>
std::unique_ptr<AnyLayer<T>> make_layer(const recycled::Shape& shape, const recycled::LayerOptions& options,
                                        const AnySchedule& schedule, const recycled::TopK& selection) {
  const auto make = [&]<class Policy>(const Policy& policy) -> std::unique_ptr<AnyLayer<T>> {
    return std::make_unique<Behind<T, R, Policy>>(shape, options, policy, selection);
  };
  if (!schedule.as_itself) return make(schedule);
  if (const auto* one = std::get_if<recycled::QuerySimilarity>(&schedule.one)) return make(*one);
  return make(std::get<recycled::AlwaysFull>(schedule.one));
}

using recycled::half, recycled::bfloat16, recycled::q8_0;
#define MADE(T, R)                                                                                              \
  template std::unique_ptr<AnyLayer<T>> make_layer<T, R>(const recycled::Shape&, const recycled::LayerOptions&, \
                                                         const AnySchedule&, const recycled::TopK&);
MADE(float, float)
MADE(float, half)
MADE(half, half)
MADE(bfloat16, bfloat16)
MADE(q8_0, q8_0)

}  // namespace reference
