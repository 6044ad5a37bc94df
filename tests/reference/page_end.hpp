// Memory that ends where a page ends: one byte further lies a page that may not be touched.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>

namespace reference {

class PageEnd {
 public:
  explicit PageEnd(std::size_t bytes) : page_(static_cast<std::size_t>(::sysconf(_SC_PAGESIZE))) {
    readable_ = (bytes + page_ - 1) / page_ * page_;
    start_ = ::mmap(nullptr, readable_ + page_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start_ == MAP_FAILED) std::abort();
    if (::mprotect(static_cast<char*>(start_) + readable_, page_, PROT_NONE) != 0) std::abort();
  }
  ~PageEnd() { ::munmap(start_, readable_ + page_); }
  PageEnd(const PageEnd&) = delete;
  PageEnd& operator=(const PageEnd&) = delete;

  /// A copy of `count` elements that ends at the end of the page.
  template <class T>
  const T* place(const T* from, std::size_t count) {
    char* to = static_cast<char*>(start_) + readable_ - count * sizeof(T);
    std::memcpy(to, from, count * sizeof(T));
    return reinterpret_cast<const T*>(to);
  }

 private:
  std::size_t page_;
  std::size_t readable_;
  void* start_;
};

}  // namespace reference
