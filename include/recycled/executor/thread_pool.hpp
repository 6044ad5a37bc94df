// A small pool for hosts that have none: parked when idle, no queue.
#pragma once

#include <atomic>
#include <thread>
#include <vector>

#include "recycled/executor/serial.hpp"
#include "recycled/types/error.hpp"

namespace recycled::inline RECYCLED_ABI {

/// Threads that help the caller with one parallel region at a time. A thread works on neighbouring pieces as long as it
/// has some, then on what others have left. Use it from one thread at a time, whichever that is; several pools may
/// exist. Pieces must not throw and must not call the pool again.
class ThreadPool {
 public:
  /// `threads` >= 1 counts the caller: ThreadPool{1} starts none.
  explicit ThreadPool(int threads) : ThreadPool() {  // from here on a failure to start a thread runs the destructor
    detail::require(threads >= 1 && threads <= 1024, "ThreadPool.threads", threads, "1 to 1024");
    shares_ = std::vector<Share>(static_cast<std::size_t>(threads));
    helpers_.reserve(shares_.size() - 1);
    for (std::size_t i = 1; i < shares_.size(); ++i) helpers_.emplace_back([this, i] { help(i); });
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
    for (index_t i = 0, begin = 0; i < threads(); ++i) {
      Share& share = shares_[static_cast<std::size_t>(i)];
      share.next.store(begin, std::memory_order_relaxed);
      share.end = begin += n / threads() + (i < n % threads() ? 1 : 0);
    }
    open_.store(true);
    open_region();
    work(0);
    // Helpers that came late find the region closed; of the others the last pieces are still running, and their results
    // are needed. Sequential consistency: a helper that finds it open has been counted before it was closed.
    open_.store(false);
    await(inside_, [](int inside) { return inside == 0; });
  }

 private:
  ThreadPool() = default;

  /// The pieces that a thread begins with. `next` goes beyond `end` as often as others look for what is left.
  struct alignas(64) Share {
    std::atomic<index_t> next{0};
    index_t end = 0;
  };

  /// Rounds of a short spin before a thread parks: the next region of a step follows within microseconds.
  static constexpr int spins = 2000;

  template <class Value, class Condition>
  static Value await(std::atomic<Value>& variable, const Condition& met) {
    Value value = variable.load();
    for (int i = 0; i < spins && !met(value); ++i) {
#if defined(__x86_64__)
      __builtin_ia32_pause();
#elif defined(__aarch64__)
      asm volatile("yield");
#endif
      value = variable.load();
    }
    while (!met(value)) {
      variable.wait(value);
      value = variable.load();
    }
    return value;
  }

  void open_region() {
    region_.fetch_add(1, std::memory_order_release);
    region_.notify_all();
  }

  void work(std::size_t self) {
    for (std::size_t i = 0; i < shares_.size(); ++i) {
      Share& share = shares_[(self + i) % shares_.size()];
      const auto take = [&] { return share.next.fetch_add(1, std::memory_order_relaxed); };
      for (index_t piece = take(); piece < share.end; piece = take()) call_(job_, piece);
    }
  }

  void help(std::size_t self) {
    for (unsigned seen = 0;;) {
      seen = await(region_, [seen](unsigned region) { return region != seen; });
      if (stopping_.load(std::memory_order_relaxed)) return;
      inside_.fetch_add(1);
      if (open_.load()) work(self);
      if (inside_.fetch_sub(1) == 1) inside_.notify_one();
    }
  }

  const void* job_ = nullptr;
  void (*call_)(const void*, index_t) = nullptr;
  std::atomic<bool> open_{false};
  alignas(64) std::atomic<int> inside_{0};
  alignas(64) std::atomic<unsigned> region_{0};
  std::atomic<bool> stopping_{false};
  std::vector<Share> shares_;  // of the caller, then of each helper
  std::vector<std::thread> helpers_;
};

}  // namespace recycled::inline RECYCLED_ABI
