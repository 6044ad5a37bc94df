// What saved states are made of and written to: checksums, the end of a prompt, a budget, streams that fail.
#include <gtest/gtest.h>

#include <cstring>
#include <numeric>
#include <sstream>

#include "reference/feed.hpp"
#include "reference/messages.hpp"
#include "reference/saved.hpp"

namespace {

using namespace recycled;
using reference::saved, reference::signed_again;

TEST(Checksum, IsThatOfTheBytesHoweverTheyCome) {
  std::string bytes(41, '\0');
  std::iota(bytes.begin(), bytes.end(), char{1});
  const auto of = [](const std::string& all, std::size_t piece) {
    detail::Checksum sum;
    for (std::size_t i = 0; i < all.size(); i += piece) sum.add(all.data() + i, std::min(piece, all.size() - i));
    return sum.value();
  };
  const std::uint64_t whole = of(bytes, bytes.size());
  for (std::size_t piece = 1; piece < bytes.size(); ++piece) {
    EXPECT_EQ(of(bytes, piece), whole) << piece;
    for (std::size_t bit = 0; bit < 8 * bytes.size(); ++bit) {
      std::string other = bytes;
      other[bit / 8] = static_cast<char>(other[bit / 8] ^ (1 << bit % 8));
      ASSERT_NE(of(other, piece), whole) << piece << ' ' << bit;
    }
  }
}

/// Takes so many bytes, and fails where it shall let go of them, as a full disk does.
class FullDisk : public std::streambuf {
 public:
  explicit FullDisk(std::streamsize room) : room_(room) {}

 private:
  int_type overflow(int_type byte) override { return --room_ < 0 ? traits_type::eof() : byte; }
  int sync() override { return -1; }

  std::streamsize room_;
};

/// What a host may have asked its streams to throw for.
#if defined(__cpp_exceptions)
constexpr std::ios::iostate every_mode[] = {std::ios::goodbit, std::ios::failbit | std::ios::badbit | std::ios::eofbit};
#else
constexpr std::ios::iostate every_mode[] = {std::ios::goodbit};
#endif

/// Of saving to a disk with so much room.
template <class Saved>
std::string error_on(std::streamsize room, std::ios::iostate throws, const Saved& one) {
  FullDisk disk(room);
  std::ostream stream(&disk);
  stream.exceptions(throws);
  return message_of([&] { one.save(stream); });
}

TEST(SavedState, IsNotWrittenToAStreamThatFails) {
  constexpr Shape shape{4, 2, 16};
  Decoder<half> decoder({1, shape}, {.capacity = 12});
  reference::decode(decoder, reference::Tokens(shape, 1).next(20));
  const Budget budget(0.2F);
  for (const std::streamsize room : {0, 20, 1 << 30}) {
    for (const std::ios::iostate throws : every_mode) {
      const std::vector<std::string> errors{error_on(room, throws, decoder), error_on(room, throws, decoder.layer(0)),
                                            error_on(room, throws, budget)};
      const std::string failed = "recycled: save: stream = failed, expected one that takes what is written";
      EXPECT_EQ(errors, std::vector(3, failed)) << room;
    }
  }
}

TEST(SavedState, IsNotReadFromAStreamThatFails) {
  Budget budget(0.2F), loaded(0.2F);
  budget.account({0, 100, 1000});
  const std::string state = saved(budget);
  const auto error = [&](std::size_t size, std::ios::iostate throws) {
    std::istringstream stream(state.substr(0, size));
    stream.exceptions(throws);
    return message_of([&] { loaded.load(stream); });
  };
  for (const std::ios::iostate throws : every_mode) {
    for (std::size_t size = 0; size < state.size(); ++size)
      EXPECT_EQ(error(size, throws), says("saved state: bytes", std::to_string(size), "more: it is cut short"));
  }
  EXPECT_EQ(loaded.spent(), 0);
  for (const std::ios::iostate throws : every_mode) EXPECT_EQ(error(state.size(), throws), "");
  EXPECT_EQ(loaded.spent(), 0.1);
}

TEST(SavedState, HoldsNoMoreOfAPromptThanTheLayerAndTheWindowsLast) {
  constexpr index_t tokens = 4, size = 8;
  std::vector<float> queries(std::size_t{tokens * size});
  std::iota(queries.begin(), queries.end(), 1.0F);
  PromptWindow window(tokens, size);
  window.push(queries);
  std::ostringstream stream;
  detail::StateWriter writer(stream);
  writer.begin("prompt");
  window.transfer(writer, tokens);
  writer.end("the prompt");
  const auto loaded = [&](index_t places, index_t length) {
    std::istringstream state(stream.str());
    detail::StateReader reader(state);
    reader.begin("prompt");
    PromptWindow into(places, size);
    into.transfer(reader, length);
    reader.end("the prompt");
    return std::vector<float>(into.query(0), into.query(into.tokens()));
  };
  for (const index_t places : {0, 1, 3, 4, 1000}) {
    const std::vector<float> last(queries.end() - std::min(places, tokens) * size, queries.end());
    EXPECT_EQ(loaded(places, tokens), last) << places;
  }
  EXPECT_EQ(message_of([&] { loaded(1000, 3); }), says("saved state: prompt queries", "4", "0 to 3"));
}

TEST(SavedState, OfABudgetIsCheckedToo) {
  Budget budget(0.2F);
  budget.account({0, 100, 1000});
  const std::string state = saved(budget);
  Budget other(0.2F);
  const auto expect = [&](std::size_t place, auto value, const std::string& message) {
    std::string harmful = state;
    std::memcpy(harmful.data() + place, &value, sizeof value);
    EXPECT_EQ(error_of(other, harmful), "recycled: saved state: " + message);
  };
  expect(24, -1.0F, "loss = -1, expected 1e-4 to 1.5");
  expect(24, 2.0F, "loss = 2, expected 1e-4 to 1.5");
  expect(52, index_t{0}, "layers that share a budget = 0, expected 1 to 1048577");
  expect(52, (index_t{1} << 20) + 2, "layers that share a budget = 1048578, expected 1 to 1048577");
  EXPECT_EQ(other.spent(), 0);
}

TEST(SavedState, OfABudgetMayHoldSumsAsLargeAsAnyThatAreTaken) {
  // They are halved, and go on being so.
  Budget budget(0.2F);
  budget.account({0, 100, 1000});
  const std::string state = saved(budget);
  std::string large = state;
  for (const auto& [place, sum] : {std::pair<std::size_t, std::uint64_t>{28, std::uint64_t{1} << 61},
                                   {36, (std::uint64_t{1} << 62) - 1},
                                   {44, std::uint64_t{1} << 55}}) {
    std::memcpy(large.data() + place, &sum, sizeof sum);
  }
  Budget full(0.2F);
  EXPECT_EQ(error_of(full, signed_again(large)), "");
  for (int i = 0; i < 9; ++i) full.account({0, 1, std::uint64_t{1} << 60});
  EXPECT_LT(full.spent(), 0.2);
  Budget other(0.2F);
  EXPECT_EQ(error_of(other, saved(full)), "");
  EXPECT_EQ(error_of(other, state), "");
  EXPECT_EQ(other.spent(), 0.1);
}

}  // namespace
