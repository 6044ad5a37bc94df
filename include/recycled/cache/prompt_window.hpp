// The last queries of the prompt: they choose the first set.
#pragma once

#include <algorithm>
#include <span>

#include "recycled/types/archive.hpp"
#include "recycled/types/memory.hpp"

namespace recycled::inline RECYCLED_ABI {

/// Keeps the queries of the last `window` prompt tokens, whatever the chunks they came in.
class PromptWindow {
 public:
  PromptWindow() = default;
  /// Queries of `size` floats a token.
  PromptWindow(index_t window, index_t size) : window_(window), size_(size) {}

  index_t tokens() const noexcept { return tokens_; }
  const float* query(index_t i) const noexcept { return queries_.data() + i * size_; }

  /// Takes in the queries [tokens, size] of a chunk. If memory runs out, nothing has changed.
  void push(std::span<const float> queries) {
    const auto given = static_cast<index_t>(queries.size()) / size_;
    const index_t fresh = std::min(given, window_);
    const index_t kept = std::min(tokens_, window_ - fresh);
    if (queries_.size() < (kept + fresh) * size_) queries_.resize((kept + fresh) * size_);
    if (kept < tokens_) std::copy_n(queries_.data() + (tokens_ - kept) * size_, kept * size_, queries_.data());
    std::copy_n(queries.data() + (given - fresh) * size_, fresh * size_, queries_.data() + kept * size_);
    tokens_ = kept + fresh;
  }
  /// Forgets all but the last `tokens`.
  void keep_last(index_t tokens) noexcept {
    if (tokens >= tokens_) return;
    std::copy_n(queries_.data() + (tokens_ - tokens) * size_, tokens * size_, queries_.data());
    tokens_ = tokens;
  }
  /// Forgets the last `tokens`.
  void drop(index_t tokens) noexcept { tokens_ = std::max(tokens_ - tokens, index_t{0}); }
  void clear() noexcept { tokens_ = 0; }

  /// Of a layer that has `length` positions. Of more queries than there are places for the last ones stay.
  template <class Io>
  void transfer(Io& io, index_t length) {
    index_t tokens = tokens_;
    io.count(tokens, 0, length, "prompt queries");
    const index_t places = std::clamp(tokens, index_t{1}, std::max(window_, index_t{1}));
    for (index_t t = 0; t < tokens; ++t) {
      const index_t i = std::max(t - (tokens - places), index_t{0});
      if constexpr (Io::loads) {  // what is there to be read, at most twice over
        if (queries_.size() < (i + 1) * size_) queries_.resize(std::min(2 * i + 1, places) * size_);
      }
      io.array(queries_.data() + i * size_, size_);
    }
    if constexpr (Io::loads) tokens_ = std::min(tokens, window_);
  }

 private:
  index_t window_ = 0;
  index_t size_ = 0;
  index_t tokens_ = 0;
  Array<float> queries_;  // [tokens, size]
};

}  // namespace recycled::inline RECYCLED_ABI
