// The threads that the host computes with.
#pragma once

#include <memory>
#include <recycled/recycled.hpp>

namespace plugin {

/// An Executor. A host that uses OpenMP leaves its threads spinning for the next region: the same ones work here,
/// because others would have to share the cores with them.
class Threads {
 public:
  /// Takes effect at the next region.
  void set_count(int count) { count_ = std::max(count, 1); }

  template <class F>
  void operator()(recycled::index_t n, const F& f) {
    if (count_ == 1 || n <= 1) return recycled::Serial{}(n, f);
#if defined(_OPENMP)
#pragma omp parallel for schedule(dynamic, 1) num_threads(count_)
    for (recycled::index_t i = 0; i < n; ++i) f(i);
#else
    if (pool_ == nullptr || pool_->threads() != count_) pool_ = std::make_unique<recycled::ThreadPool>(count_);
    (*pool_)(n, f);
#endif
  }

 private:
  int count_ = 1;
#if !defined(_OPENMP)
  std::unique_ptr<recycled::ThreadPool> pool_;
#endif
};

}  // namespace plugin
