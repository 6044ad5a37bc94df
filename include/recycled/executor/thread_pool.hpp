// A small pool for hosts that have none: parked when idle, no work stealing, no queue.
#pragma once

#include <atomic>
#include <thread>
#include <vector>

#include "recycled/executor/serial.hpp"
#include "recycled/types/error.hpp"

namespace recycled::inline RECYCLED_ABI {

/// Threads that help the caller with one parallel region at a time. Use it from one thread at a time; several pools may
/// exist. Pieces must not throw and must not call the pool again.
class ThreadPool {
 public:
  /// `threads` >= 1 counts the caller: ThreadPool{1} starts none.
  explicit ThreadPool(int threads) : ThreadPool() {  // from here on a failure to start a thread runs the destructor
    detail::require(threads >= 1 && threads <= 1024, "ThreadPool.threads", threads, "1 to 1024");
    helpers_.reserve(static_cast<std::size_t>(threads - 1));
    for (int i = 1; i < threads; ++i) helpers_.emplace_back([this] { help(); });
  }
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;
  ~ThreadPool() {
    stopping_.store(true, std::memory_order_relaxed);
    open_region();
    for (std::thread& helper : helpers_) helper.join();
  }

  /// Caller and helpers.
  int threads() const noexcept { return static_cast<int>(helpers_.size()) + 1; }

  /// Calls f(0), ..., f(n - 1) on all threads; returns when all are done.
  template <class F>
  void operator()(index_t n, const F& f) {
    if (helpers_.empty() || n <= 1) return Serial{}(n, f);
    job_ = &f;
    call_ = [](const void* job, index_t i) { (*static_cast<const F*>(job))(i); };
    count_ = n;
    next_.store(0, std::memory_order_relaxed);
    busy_.store(static_cast<int>(helpers_.size()), std::memory_order_relaxed);
    open_region();
    work();
    // The helpers' last pieces are still running: their results are needed, and so is the job itself.
    await(busy_, [](int busy) { return busy == 0; });
  }

 private:
  ThreadPool() = default;

  /// Rounds of a short spin before a thread parks: the next region of a step follows within microseconds.
  static constexpr int spins = 2000;

  template <class Value, class Condition>
  static Value await(std::atomic<Value>& variable, const Condition& met) {
    Value value = variable.load(std::memory_order_acquire);
    for (int i = 0; i < spins && !met(value); ++i) {
#if defined(__x86_64__)
      __builtin_ia32_pause();
#elif defined(__aarch64__)
      asm volatile("yield");
#endif
      value = variable.load(std::memory_order_acquire);
    }
    while (!met(value)) {
      variable.wait(value, std::memory_order_acquire);
      value = variable.load(std::memory_order_acquire);
    }
    return value;
  }

  void open_region() {
    region_.fetch_add(1, std::memory_order_release);
    region_.notify_all();
  }

  void work() {
    for (index_t i = next_.fetch_add(1, std::memory_order_relaxed); i < count_;
         i = next_.fetch_add(1, std::memory_order_relaxed)) {
      call_(job_, i);
    }
  }

  void help() {
    for (unsigned seen = 0;;) {
      seen = await(region_, [seen](unsigned region) { return region != seen; });
      if (stopping_.load(std::memory_order_relaxed)) return;
      work();
      if (busy_.fetch_sub(1, std::memory_order_acq_rel) == 1) busy_.notify_one();
    }
  }

  const void* job_ = nullptr;
  void (*call_)(const void*, index_t) = nullptr;
  index_t count_ = 0;
  alignas(64) std::atomic<index_t> next_{0};
  alignas(64) std::atomic<int> busy_{0};
  alignas(64) std::atomic<unsigned> region_{0};
  std::atomic<bool> stopping_{false};
  std::vector<std::thread> helpers_;
};

}  // namespace recycled::inline RECYCLED_ABI
