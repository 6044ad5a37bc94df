// What the llama.cpp plugin notices of rows that change behind its back.
#include <gtest/gtest.h>

#include <recycled/recycled.hpp>
#include <vector>

#include "../examples/llama_cpp/plugin/contents.hpp"

namespace {

using namespace plugin;

constexpr std::size_t row = 96;
constexpr index_t cells = 5000;

struct Rows {
  explicit Rows(std::size_t turned_bytes) : memory{bytes.data(), nullptr, row, row, 0, 0, row, turned_bytes} {
    for (index_t c = 0; c < cells; ++c) table.push_back(static_cast<std::int32_t>(cells - 1 - c));
    for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i * i >> 3);
    contents.note(memory, all());
  }
  Cells all() const { return {table.data(), cells, false}; }
  bool unchanged(bool thorough) { return contents.unchanged(memory, all(), thorough, threads); }
  std::byte& byte(index_t position, std::size_t i) {
    return bytes[static_cast<std::size_t>(table[static_cast<std::size_t>(position)]) * row + i];
  }

  std::vector<std::byte> bytes = std::vector<std::byte>(row * cells);
  std::vector<std::int32_t> table;
  Memory memory;
  Contents contents;
  Threads threads;
};

TEST(Contents, AreUnchangedUntilAKeyIs) {
  Rows rows(0);
  for (const index_t position : {index_t{0}, index_t{1}, index_t{2048}, cells - 1}) {
    EXPECT_TRUE(rows.unchanged(true));
    rows.byte(position, 5) ^= std::byte{1};
    EXPECT_FALSE(rows.unchanged(true)) << position;
    rows.byte(position, 5) ^= std::byte{1};
  }
}
TEST(Contents, ASampleHasBeenEverywhereAfter64Calls) {
  for (const index_t position : {index_t{0}, index_t{63}, index_t{64}, cells - 1}) {
    Rows rows(0);
    rows.byte(position, 0) ^= std::byte{1};
    int noticed = 0;
    for (int call = 0; call < 64; ++call) noticed += rows.unchanged(false) ? 0 : 1;
    EXPECT_EQ(noticed, 1) << position;
  }
}
/// Latent attention: positions turn the end of a key alone.
TEST(Contents, OfKeysThatTurnAtTheirEnd) {
  Rows start(0), end(64);
  start.byte(7, 70) ^= std::byte{1};
  end.byte(7, 70) ^= std::byte{1};
  EXPECT_TRUE(start.unchanged(true));
  EXPECT_FALSE(end.unchanged(true));
  end.byte(7, 70) ^= std::byte{1};
  end.byte(8, 2) ^= std::byte{1};
  EXPECT_FALSE(end.unchanged(true));
  Rows last(92);  // four bytes are left
  last.byte(0, 95) ^= std::byte{1};
  EXPECT_FALSE(last.unchanged(true));
}

}  // namespace
