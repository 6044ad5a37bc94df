// State on its way to a stream and back: each class names what it holds once, in transfer(io), and `io` writes or
// reads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <istream>
#include <ostream>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "recycled/types/error.hpp"

namespace recycled::inline RECYCLED_ABI {

/// What a schedule or a selection has learnt, on its way to a saved state or back (Decoder::save). A policy that learns
/// has a member
///     template <class Io> void transfer(Io& io) { io(thresholds, count); }
/// which names numbers and vectors of numbers (or of structs of floats). What it does not name is not saved: parameters
/// are those of the policy that the loading layer was made with. validate(), if there is one, is called afterwards.
class Learnt {
 public:
  /// To be written.
  Learnt() = default;
  /// To be read from.
  explicit Learnt(std::string bytes) : bytes_(std::move(bytes)), loads_(true) {}

  template <class... Values>
  void operator()(Values&... values) {
    (one(values), ...);
  }
  const std::string& bytes() const noexcept { return bytes_; }
  /// Whether all of what was written has been read, and no more than that.
  bool complete() const noexcept { return !short_ && read_ == bytes_.size(); }

 private:
  template <class N>
  void one(N& value) {
    static_assert(std::is_arithmetic_v<N>, "what is saved are numbers and vectors of them");
    if constexpr (std::is_same_v<N, bool>) {
      auto byte = static_cast<std::uint8_t>(value);
      raw(&byte, 1);
      value = byte != 0;
    } else {
      raw(&value, sizeof(N));
    }
  }
  template <class N>
  void one(std::vector<N>& values) {
    static_assert(std::is_trivially_copyable_v<N> && !std::is_same_v<N, bool> && !std::is_pointer_v<N>);
    std::uint64_t size = values.size();
    raw(&size, sizeof size);
    if (loads_) {
      short_ = short_ || size > (bytes_.size() - read_) / sizeof(N);
      values.resize(short_ ? 0 : static_cast<std::size_t>(size));
    }
    raw(values.data(), values.size() * sizeof(N));
  }
  void raw(void* data, std::size_t size) {
    if (size == 0) return;
    if (!loads_) {
      bytes_.append(static_cast<const char*>(data), size);
      return;
    }
    short_ = short_ || size > bytes_.size() - read_;
    if (short_) return;
    std::memcpy(data, bytes_.data() + read_, size);
    read_ += size;
  }

  std::string bytes_;
  std::size_t read_ = 0;
  bool loads_ = false;
  bool short_ = false;
};

namespace detail {

/// Of bytes in the order in which they go by: a change within one of the words of eight is always found, any other but
/// for one in 2^64.
class Checksum {
 public:
  void add(const void* data, std::size_t size) noexcept {
    const auto* bytes = static_cast<const char*>(data);
    while (size > 0) {
      const std::size_t some = std::min(size, sizeof word_ - filled_);
      std::memcpy(word_ + filled_, bytes, some);
      bytes += some;
      size -= some;
      filled_ = (filled_ + some) % sizeof word_;
      if (filled_ == 0) sum_ = mixed(sum_, word_, sizeof word_);
    }
  }
  std::uint64_t value() const noexcept { return mixed(sum_, word_, filled_); }

 private:
  /// One to one in the sum and in the word: an odd factor, and bits that are added to lower ones.
  static std::uint64_t mixed(std::uint64_t sum, const char* bytes, std::size_t count) noexcept {
    std::uint64_t word = 0;
    std::memcpy(&word, bytes, count);
    sum = (sum ^ word) * 0x9E3779B97F4A7C15U;
    return sum ^ (sum >> 32);
  }

  std::uint64_t sum_ = 0x52656379636C6564U;
  std::size_t filled_ = 0;
  char word_[8] = {};
};

/// A host's stream may throw by itself (std::ios::exceptions); that it failed stays to be seen on it.
template <class F>
void quietly(const F& f) {
#if defined(RECYCLED_HAS_EXCEPTIONS)
  try {
    f();
  } catch (const std::ios_base::failure&) {  // the library's error says more
  }
#else
  f();
#endif
}

/// What StateWriter and StateReader have in common: `Self` has bytes(data, size).
template <class Self>
class StateIo {
 public:
  /// Numbers, any of which will do.
  template <class... N>
  void plain(N&... values) {
    static_assert(((std::is_arithmetic_v<N> && !std::is_same_v<N, bool>)&&...));
    (self().bytes(&values, sizeof values), ...);
  }
  void flag(bool& value) {
    index_t number = value ? 1 : 0;
    count(number, 0, 1, "a flag");
    if constexpr (Self::loads) value = number != 0;
  }
  /// A whole number from `least` to `most`, named in an error.
  template <class N>
  void count(N& value, index_t least, index_t most, std::string_view name) {
    auto number = static_cast<index_t>(value);
    self().bytes(&number, sizeof number);
    if (number < least || number > most) {
      fail_argument(text("saved state: ", name), number, text(least, " to ", most));
    }
    if constexpr (Self::loads) value = static_cast<N>(number);
  }
  /// What has to be as it is in the object that is loaded into: a number, or a word of up to eight letters.
  template <class N>
  void same(const N& value, std::string_view name) {
    N other = value;
    self().bytes(&other, sizeof other);
    if (!(other == value)) fail_argument(text("saved state: ", name), other, text(value, ", as here"));
  }
  void same(const std::string_view& word, std::string_view name) {
    char other[8] = {};
    word.copy(other, sizeof other);
    self().bytes(other, sizeof other);
    if (std::string_view(other, word.size()) == word &&
        std::all_of(other + word.size(), other + 8, [](char c) { return c == 0; }))
      return;
    fail_argument(text("saved state: ", name), "another", text(word, ", as here"));
  }
  /// A state of this `kind` begins.
  void begin(std::string_view kind) {
    same(std::string_view("recycled"), "first bytes");
    same(kind, "kind");
    same(std::uint32_t{0x01020304}, "byte order");
    same(std::uint32_t{2}, "version");
  }
  template <class N>
  void array(N* values, index_t size) {
    static_assert(std::is_trivially_copyable_v<N>);
    if (size > 0) self().bytes(values, static_cast<std::size_t>(size) * sizeof(N));
  }
  /// Ends a part: what was read so far is whole.
  void end(std::string_view part) {
    const std::uint64_t expected = sum_.value();
    std::uint64_t sum = expected;
    self().bytes(&sum, sizeof sum);
    if (sum != expected)
      fail_argument(text("saved state: checksum of ", part), sum, "that of its bytes: it is damaged");
  }

 protected:
  void went_by(const void* data, std::size_t size) noexcept { sum_.add(data, size); }

 private:
  Self& self() noexcept { return static_cast<Self&>(*this); }

  Checksum sum_;
};

class StateWriter : public StateIo<StateWriter> {
 public:
  static constexpr bool loads = false;
  explicit StateWriter(std::ostream& stream) : stream_(stream) {}

  void bytes(const void* data, std::size_t size) {
    quietly([&] { stream_.write(static_cast<const char*>(data), static_cast<std::streamsize>(size)); });
    check();
    went_by(data, size);
  }
  /// All is written: what waits in a buffer may still find no place.
  void finish() {
    quietly([&] { stream_.flush(); });
    check();
  }
  template <class Policy>
  void learnt(const Policy& policy, std::string_view /*name*/) {
    Learnt learnt;
    if constexpr (requires(Policy & p) { p.transfer(learnt); }) {
      Policy copy = policy;
      copy.transfer(learnt);
    }
    auto size = static_cast<index_t>(learnt.bytes().size());
    count(size, 0, std::numeric_limits<index_t>::max(), "size");
    if (size > 0) bytes(learnt.bytes().data(), learnt.bytes().size());
  }

 private:
  void check() const {
    if (!stream_) fail_argument("save: stream", "failed", "one that takes what is written");
  }

  std::ostream& stream_;
};

/// Everything that is read is checked, and memory is taken only for what has been read: a saved state may be anything.
class StateReader : public StateIo<StateReader> {
 public:
  static constexpr bool loads = true;
  explicit StateReader(std::istream& stream) : stream_(stream) {}

  void bytes(void* data, std::size_t size) {
    quietly([&] { stream_.read(static_cast<char*>(data), static_cast<std::streamsize>(size)); });
    if (static_cast<std::size_t>(stream_.gcount()) != size) {
      fail_argument("saved state: bytes", read_ + static_cast<std::uint64_t>(stream_.gcount()),
                    "more: it is cut short");
    }
    read_ += size;
    went_by(data, size);
  }
  template <class Policy>
  void learnt(Policy& policy, std::string_view name) {
    index_t size = 0;
    count(size, 0, std::numeric_limits<index_t>::max(), text("size of the ", name));
    std::string all;
    while (static_cast<index_t>(all.size()) < size) {
      const std::size_t before = all.size(), left = static_cast<std::size_t>(size) - before;
      all.resize(before + std::min(left, before + piece));
      bytes(all.data() + before, all.size() - before);
    }
    Learnt learnt(std::move(all));
    if constexpr (requires { policy.transfer(learnt); }) policy.transfer(learnt);
    if (!learnt.complete()) fail_argument(text("saved state: size of the ", name), size, "that of the one here");
    validate(policy);
  }

 private:
  static constexpr std::size_t piece = 1 << 16;

  std::istream& stream_;
  std::uint64_t read_ = 0;
};

}  // namespace detail

}  // namespace recycled::inline RECYCLED_ABI
