// Every form of operator new, replaced: it counts, may fail, and hands out memory that is filled with what a test
// likes. For the one file of a program that includes this.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <new>

// g++ sees free() inlined where operator new is not, and takes the two for a mismatch.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmismatched-new-delete"
#endif

namespace reference {

inline std::atomic<long> allocations{0};         // so far
inline std::atomic<long> live{0};                // of them not yet given back
inline std::atomic<std::size_t> bytes_asked{0};  // bytes in all of them
inline std::atomic<long> until_failure{0};       // the allocation that fails, from now on; 0: none does
inline std::atomic<int> filling{-1};             // the byte that new memory is full of; -1: whatever was there

/// Null if this allocation is the one that fails.
inline void* allocate(std::size_t bytes, std::size_t alignment) noexcept {
  if (until_failure > 0 && --until_failure == 0) return nullptr;
  allocations.fetch_add(1, std::memory_order_relaxed);
  live.fetch_add(1, std::memory_order_relaxed);
  bytes_asked.fetch_add(bytes, std::memory_order_relaxed);
  // Not a byte more, so that a sanitizer sees what is beyond.
  void* memory = nullptr;
  if (::posix_memalign(&memory, std::max(alignment, sizeof(void*)), std::max(bytes, std::size_t{1})) != 0) std::abort();
  if (filling >= 0) std::memset(memory, filling, bytes);
  return memory;
}
inline void* allocate_or_throw(std::size_t bytes, std::size_t alignment) {
  void* const memory = allocate(bytes, alignment);
  if (memory != nullptr) return memory;
#if defined(__cpp_exceptions)
  throw std::bad_alloc();
#else
  std::abort();
#endif
}
inline void give_back(void* memory) noexcept {
  if (memory != nullptr) live.fetch_sub(1, std::memory_order_relaxed);
  std::free(memory);
}

/// While it lives, the `n`-th allocation fails.
struct Failing {
  explicit Failing(long n) { until_failure = n; }
  Failing(const Failing&) = delete;
  Failing& operator=(const Failing&) = delete;
  ~Failing() { until_failure = 0; }
  /// Whether there were so many.
  static bool happened() { return until_failure == 0; }
};

}  // namespace reference

void* operator new(std::size_t bytes) { return reference::allocate_or_throw(bytes, alignof(std::max_align_t)); }
void* operator new[](std::size_t bytes) { return reference::allocate_or_throw(bytes, alignof(std::max_align_t)); }
void* operator new(std::size_t bytes, std::align_val_t a) {
  return reference::allocate_or_throw(bytes, static_cast<std::size_t>(a));
}
void* operator new[](std::size_t bytes, std::align_val_t a) {
  return reference::allocate_or_throw(bytes, static_cast<std::size_t>(a));
}
void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept {
  return reference::allocate(bytes, alignof(std::max_align_t));
}
void* operator new[](std::size_t bytes, const std::nothrow_t&) noexcept {
  return reference::allocate(bytes, alignof(std::max_align_t));
}
void* operator new(std::size_t bytes, std::align_val_t a, const std::nothrow_t&) noexcept {
  return reference::allocate(bytes, static_cast<std::size_t>(a));
}
void* operator new[](std::size_t bytes, std::align_val_t a, const std::nothrow_t&) noexcept {
  return reference::allocate(bytes, static_cast<std::size_t>(a));
}
void operator delete(void* memory) noexcept { reference::give_back(memory); }
void operator delete[](void* memory) noexcept { reference::give_back(memory); }
void operator delete(void* memory, std::size_t) noexcept { reference::give_back(memory); }
void operator delete[](void* memory, std::size_t) noexcept { reference::give_back(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { reference::give_back(memory); }
void operator delete[](void* memory, std::align_val_t) noexcept { reference::give_back(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { reference::give_back(memory); }
void operator delete[](void* memory, std::size_t, std::align_val_t) noexcept { reference::give_back(memory); }
void operator delete(void* memory, const std::nothrow_t&) noexcept { reference::give_back(memory); }
void operator delete[](void* memory, const std::nothrow_t&) noexcept { reference::give_back(memory); }
void operator delete(void* memory, std::align_val_t, const std::nothrow_t&) noexcept { reference::give_back(memory); }
void operator delete[](void* memory, std::align_val_t, const std::nothrow_t&) noexcept { reference::give_back(memory); }
