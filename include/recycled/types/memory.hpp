// Arrays with signed indices, aligned for vectors and, where they are large, for huge pages.
#pragma once

#include <cstddef>
#include <limits>
#include <new>
#include <utility>
#include <vector>

#include "recycled/types/error.hpp"
#include "recycled/types/scalar.hpp"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace recycled::inline RECYCLED_ABI {

namespace detail {

/// Allocates on cache lines; from one huge page on, aligned to huge pages and advised as such, because a scan over a
/// gigabyte of 4 KiB pages spends its time on TLB misses. New elements stay uninitialised.
template <class T>
struct AlignedAllocator {
  using value_type = T;
  static constexpr std::size_t cache_line = 64;
  static constexpr std::size_t huge_page = std::size_t{1} << 21;

  AlignedAllocator() = default;
  template <class U>
  explicit AlignedAllocator(const AlignedAllocator<U>& /*other*/) noexcept {}

  static std::align_val_t alignment(std::size_t bytes) noexcept {
    return std::align_val_t{bytes >= huge_page ? huge_page : cache_line};
  }
  T* allocate(std::size_t count) {
    const std::size_t bytes = count * sizeof(T);
    void* memory = ::operator new(bytes, alignment(bytes));
#if defined(__linux__)
    if (bytes >= huge_page) ::madvise(memory, bytes / huge_page * huge_page, MADV_HUGEPAGE);
#endif
    return static_cast<T*>(memory);
  }
  void deallocate(T* memory, std::size_t count) noexcept { ::operator delete(memory, alignment(count * sizeof(T))); }
  template <class U, class... Args>
  void construct(U* place, Args&&... args) {
    if constexpr (sizeof...(Args) > 0) {
      ::new (static_cast<void*>(place)) U(std::forward<Args>(args)...);
    } else if constexpr (!Scalar<U>) {  // operator new makes those, and their constructors would write zeros
      ::new (static_cast<void*>(place)) U;
    }
  }
  friend bool operator==(const AlignedAllocator& /*a*/, const AlignedAllocator& /*b*/) { return true; }
};

}  // namespace detail

/// A std::vector with signed sizes and indices, aligned storage, and elements that start uninitialised.
template <class T>
class Array {
 public:
  Array() = default;
  explicit Array(index_t count) { resize(count); }
  Array(index_t count, const T& value) { assign(count, value); }

  /// Contents are kept; new elements are uninitialised. Throws std::invalid_argument for a size that no memory has.
  void resize(index_t count) { elements_.resize(checked(count)); }
  void assign(index_t count, const T& value) { elements_.assign(checked(count), value); }

  index_t size() const noexcept { return static_cast<index_t>(elements_.size()); }
  T* data() noexcept { return elements_.data(); }
  const T* data() const noexcept { return elements_.data(); }
  T& operator[](index_t i) noexcept { return elements_.data()[i]; }
  const T& operator[](index_t i) const noexcept { return elements_.data()[i]; }
  T* begin() noexcept { return data(); }
  T* end() noexcept { return data() + size(); }
  const T* begin() const noexcept { return data(); }
  const T* end() const noexcept { return data() + size(); }

 private:
  static std::size_t checked(index_t count) {
    constexpr index_t most = (index_t{1} << 48) / static_cast<index_t>(sizeof(T));
    detail::require(count >= 0 && count <= most, "array size", count, "0 to 2^48 bytes' worth of elements");
    return static_cast<std::size_t>(count);
  }

  std::vector<T, detail::AlignedAllocator<T>> elements_;
};

}  // namespace recycled::inline RECYCLED_ABI
