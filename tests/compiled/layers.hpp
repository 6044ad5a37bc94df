// Layers that follow any schedule, behind a door, so that they are compiled once for all tests that go through it.
#pragma once

#include <memory>

#include "reference/any_policy.hpp"

namespace reference {

/// LayerAttention over rows of T. Steps and prompts run on a pool; one of a single thread is none.
template <recycled::Scalar T>
class AnyLayer {
 public:
  using Floats = std::span<const float>;
  using View = recycled::KvView<T>;
  using Pool = recycled::ThreadPool;

  AnyLayer() = default;
  AnyLayer& operator=(const AnyLayer&) = delete;
  virtual ~AnyLayer() = default;

  virtual std::unique_ptr<AnyLayer> copy() const = 0;
  virtual void step(Floats query, const View& kv, std::span<float> out, Pool& pool, Floats compared = {}) = 0;
  virtual void prefill(Floats queries, const View& kv, std::span<float> out, Pool& pool) = 0;
  virtual void observe(Floats queries, index_t length) = 0;
  virtual void prepare(const View& kv, Pool& pool) = 0;
  virtual void choose_positions(std::span<const index_t> positions, const View& kv, Pool& pool) = 0;
  virtual void choose_by_scores(Floats scores, const View& kv, Pool& pool) = 0;
  virtual void rollback(index_t tokens) = 0;
  virtual void save(std::ostream& stream) const = 0;
  virtual void load(std::istream& stream) = 0;

  virtual index_t length() const = 0;
  virtual recycled::StepKind last_step(index_t kv_head) const = 0;
  virtual std::vector<index_t> recycled_positions(index_t kv_head) const = 0;
  virtual const recycled::LayerStatistics& statistics() const = 0;
  virtual AnySchedule schedule() const = 0;

 protected:
  AnyLayer(const AnyLayer&) = default;
};

/// One that recycles rows as R, for rows of any type, and of float as half, too.
template <recycled::Scalar T, recycled::Scalar R = T>
std::unique_ptr<AnyLayer<T>> make_layer(const recycled::Shape& shape, const recycled::LayerOptions& options,
                                        const AnySchedule& schedule, const recycled::TopK& selection = {});

}  // namespace reference
