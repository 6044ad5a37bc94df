// What all contexts of a program share: settings, and counts.
#pragma once

#include <atomic>
#include <mutex>

#include "policy.hpp"

namespace plugin {

/// Settings and counts; the host may make contexts on any thread.
class Shared {
 public:
  static Shared& get() {
    static Shared shared;
    return shared;
  }
  Policy policy() {
    const std::lock_guard lock(mutex_);
    return policy_;
  }
  std::uint64_t version() const { return version_.load(std::memory_order_acquire); }
  void set(const std::string& name, const std::string& value, const std::string& shown) {
    const std::lock_guard lock(mutex_);
    Policy changed = policy_;
    plugin::set(changed, name, value, shown);
    policy_ = std::move(changed);
    version_.fetch_add(1, std::memory_order_release);
  }
  /// Counts of a context: what came since it last said.
  void add(const Counts& now, Counts& said) {
    const std::lock_guard lock(mutex_);
    for_each([&](auto Counts::*count) { total_.*count += now.*count - said.*count; });
    said = now;
  }
  /// A context was made.
  void use() {
    const std::lock_guard lock(mutex_);
    used_ = true;
  }
  bool used() {
    const std::lock_guard lock(mutex_);
    return used_;
  }
  Counts total() {
    const std::lock_guard lock(mutex_);
    return total_;
  }

 private:
  template <class F>
  static void for_each(const F& f) {
    for (auto count : {&Counts::exact_steps, &Counts::prefill_tokens, &Counts::full_steps, &Counts::sketched_steps,
                       &Counts::recycled_steps, &Counts::restarts, &Counts::rewritten, &Counts::handed_back,
                       &Counts::rows_read, &Counts::rows_full, &Counts::bytes_read, &Counts::bytes_full}) {
      f(count);
    }
  }

  std::mutex mutex_;
  Policy policy_;
  std::atomic<std::uint64_t> version_{1};
  Counts total_ = {};
  bool used_ = false;
};

}  // namespace plugin
