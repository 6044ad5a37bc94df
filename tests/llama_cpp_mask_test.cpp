// What the llama.cpp plugin makes of attention masks: whatever it does not hand back, its chains say what the mask
// says.
#include <gtest/gtest.h>

#include <random>
#include <set>

#include "../examples/llama_cpp/plugin/mask.hpp"

namespace {

using namespace plugin;
using Seen = std::set<std::int32_t>;

constexpr std::uint16_t visible = 0, hidden = 0xFC00;

/// A mask of `cells` columns, with a stride beyond them.
struct Mask {
  explicit Mask(index_t columns) : cells(columns) {}

  Mask& row(const Seen& seen) {
    halfs.resize(halfs.size() + static_cast<std::size_t>(cells + 3), hidden);
    for (const std::int32_t cell : seen) halfs[halfs.size() - static_cast<std::size_t>(cells + 3 - cell)] = visible;
    rows.push_back(seen);
    return *this;
  }
  std::optional<std::vector<Chain>> chains() const {
    std::vector<CellSet> sets(rows.size());
    for (std::size_t r = 0; r < rows.size(); ++r) {
      if (!sets[r].read(halfs_of(r), cells)) return std::nullopt;
      for (std::size_t other = 0; other < rows.size(); ++other) {
        EXPECT_EQ(sets[r].says(halfs_of(other), cells), rows[r] == rows[other]) << r << " and " << other;
      }
      EXPECT_FALSE(sets[r].says(halfs_of(r), cells + 64)) << "more cells";
    }
    return Chains::of(sets);
  }
  const std::uint16_t* halfs_of(std::size_t row) const {
    return halfs.data() + row * static_cast<std::size_t>(cells + 3);
  }
  /// The tokens of each chain; each of them sees what its row says.
  std::vector<index_t> checked_tokens() const {
    const auto chains = this->chains();
    if (!chains) {
      ADD_FAILURE() << "handed back";
      return {};
    }
    std::vector<index_t> tokens;
    index_t next = 0;
    for (const Chain& chain : *chains) {
      EXPECT_EQ(chain.first, next);
      for (index_t t = 0; t < chain.tokens; ++t) {
        const index_t end = static_cast<index_t>(chain.cells.size()) - chain.tokens + 1 + t;
        const index_t begin = chain.window > 0 ? std::max(end - chain.window, index_t{0}) : 0;
        std::vector<std::int32_t> seen(chain.cells.begin() + begin, chain.cells.begin() + end);
        std::sort(seen.begin(), seen.end());  // as they are: a cell must not be in it twice
        const Seen& expected = rows[static_cast<std::size_t>(next + t)];
        EXPECT_EQ(seen, std::vector<std::int32_t>(expected.begin(), expected.end())) << "token " << next + t;
      }
      next += chain.tokens;
      tokens.push_back(chain.tokens);
    }
    EXPECT_EQ(next, static_cast<index_t>(rows.size()));
    return tokens;
  }

  index_t cells;
  std::vector<std::uint16_t> halfs;
  std::vector<Seen> rows;
};

using Tokens = std::vector<index_t>;

TEST(Chains, TokensOfAPromptAreOne) {
  EXPECT_EQ(Mask(200).row({0}).row({0, 1}).row({0, 1, 2}).checked_tokens(), Tokens{3});
  EXPECT_EQ(Mask(70).row({3, 69}).row({3, 5, 69}).row({3, 5, 65, 69}).checked_tokens(), Tokens{3}) << "in freed cells";
}
TEST(Chains, AWindowSlides) {
  EXPECT_EQ(Mask(9).row({0, 1, 2}).row({1, 2, 3}).row({2, 3, 4}).row({3, 4, 5}).checked_tokens(), Tokens{4});
  EXPECT_EQ(Mask(9).row({0, 1}).row({0, 1, 2}).row({1, 2, 3}).row({2, 3, 4}).checked_tokens(), Tokens{4}) << "fills up";
  // A ring: what came first is 7, 8, 0; the next ones overwrite them in this order.
  EXPECT_EQ(Mask(9).row({7, 8, 0}).row({8, 0, 1}).row({0, 1, 2}).row({1, 2, 3}).checked_tokens(), Tokens{4});
}
TEST(Chains, AWindowLongerThanThePromptBeforeIt) {
  EXPECT_EQ(Mask(9).row({0, 1}).row({1, 2}).row({2, 3}).row({3, 4}).row({4, 5}).checked_tokens(), Tokens{5});
}
TEST(Chains, AreOrderedAsIsKnown) {
  const auto ordered = [](const Seen& first, const Seen& second, const std::vector<std::int32_t>& known) {
    Mask mask(70);
    mask.row(first);
    if (!second.empty()) mask.row(second);
    return mask.chains().value().at(0).cells_as_in(known);
  };
  using Cells = std::vector<std::int32_t>;
  const Cells wrapped{65, 66, 67, 0, 1, 2, 3};  // of which the last are taken back
  EXPECT_EQ(ordered({0, 1, 65, 66, 67}, {}, wrapped), (Cells{65, 66, 67, 0, 1}));
  EXPECT_EQ(ordered({0, 1, 65, 66, 67}, {0, 1, 2, 65, 66, 67}, wrapped), (Cells{65, 66, 67, 0, 1, 2}));
  EXPECT_EQ(ordered({0, 1, 9, 65}, {}, wrapped), (Cells{0, 1, 9, 65})) << "of something else";
}
TEST(Chains, SequencesAreApart) {
  EXPECT_EQ(Mask(99).row({0, 1, 2, 90}).row({0, 1, 2, 91}).checked_tokens(), (Tokens{1, 1}));
  EXPECT_EQ(Mask(99).row({0, 1, 2}).row({50, 51}).row({50, 51, 52}).checked_tokens(), (Tokens{1, 2}));
  EXPECT_EQ(Mask(99).row({0, 1, 2, 90}).row({0, 1, 2, 91}).row({0, 1, 2, 92}).checked_tokens(), (Tokens{1, 1, 1}));
  const auto three = Mask(99).row({0, 1, 2, 90}).row({0, 1, 2, 91}).row({0, 1, 2, 92}).chains();
  ASSERT_TRUE(three);
  EXPECT_EQ(three->front().cells, (std::vector<std::int32_t>{0, 1, 2, 90})) << "what only one sees is no first token";
}
TEST(Chains, ATokenThatSeesNothingIsAlone) {
  EXPECT_EQ(Mask(9).row({}).row({0}).row({0, 1}).checked_tokens(), (Tokens{1, 2}));
}
TEST(Chains, WhatTheyDoNotUnderstandIsHandedBack) {
  EXPECT_FALSE(Mask(9).row({0, 1, 2}).row({0, 1, 2}).chains()) << "tokens that see each other";
  for (const int value : {0x0001, 0x3C00, 0xBC00, 0xFBFF, 0x7C00, 0x7E00, 0xFE00, 0x8000}) {
    Mask mask(70);
    mask.row({0, 1});
    mask.halfs[66] = static_cast<std::uint16_t>(value);
    EXPECT_FALSE(mask.chains()) << "a bias, the least half, infinity, NaN or -0: " << value;
  }
}
TEST(CellSet, FindsWhatIsNeitherSeenNorHiddenAnywhere) {
  const std::vector<std::uint16_t> plain(70, hidden);
  CellSet set;
  ASSERT_TRUE(set.read(plain.data(), 70));
  for (std::size_t cell = 0; cell < plain.size(); ++cell) {
    // 0xBC00, -1, has the bit that tells -infinity from 0; 0x7C00 is infinity.
    for (const int value : {0x0001, 0x3C00, 0xBC00, 0xFBFF, 0x7C00, 0x7E00, 0xFE00, 0x8000, 0xFC01}) {
      std::vector<std::uint16_t> biased = plain;
      biased[cell] = static_cast<std::uint16_t>(value);
      EXPECT_FALSE(set.says(biased.data(), 70)) << value << " at " << cell;
      EXPECT_FALSE(CellSet().read(biased.data(), 70)) << value << " at " << cell;
    }
  }
}
TEST(Chains, SayWhatAnyMaskSays) {
  std::mt19937 random(1);
  const auto below = [&](int n) { return std::uniform_int_distribution<int>(0, n - 1)(random); };
  int handed_back = 0;
  for (int round = 0; round < 3000; ++round) {
    const index_t cells = 1 + below(150);
    Mask mask(cells);
    Seen seen;
    for (int i = below(20); i > 0; --i) seen.insert(below(static_cast<int>(cells)));
    for (int token = 1 + below(12); token > 0; --token) {
      const int kind = below(12);  // mostly a token more, often with a window, now and then anything
      for (int tries = 0; kind < 10 && tries < 100; ++tries) {
        if (seen.insert(below(static_cast<int>(cells))).second) break;
      }
      if (round % 3 == 0 && kind < 9 && !seen.empty())
        seen.erase(std::next(seen.begin(), kind < 8 ? 0 : below(static_cast<int>(seen.size()))));
      if (kind == 11) seen = {below(static_cast<int>(cells))};
      mask.row(seen);
    }
    if (mask.chains()) {
      mask.checked_tokens();
    } else {
      ++handed_back;
      EXPECT_NE(std::adjacent_find(mask.rows.begin(), mask.rows.end()), mask.rows.end());
    }
  }
  EXPECT_LT(handed_back, 1500);
}

}  // namespace
