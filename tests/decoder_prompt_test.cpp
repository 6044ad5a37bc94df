// The prompt: chunks of any size, the window of queries that chooses the first set, and no prompt at all.
#include <numeric>

#include "reference/lockstep.hpp"

namespace {

using namespace recycled;
using reference::Lockstep;
using reference::Token;
using reference::Tokens;

constexpr Shape shape{6, 2, 46, 24};

TEST(Prompt, TheLastTokensScoresChooseTheFirstSet) {
  Lockstep<float, NeverFull> both({.shape = shape, .capacity = 16}, {}, reference::never_full());
  both.prefill(100);
  EXPECT_TRUE(both.decoder().layer(0).recycled_positions(0).empty());
  both.step(3);
  EXPECT_EQ(both.decoder().layer(0).statistics().total().full_steps, 0U);
}

TEST(Prompt, AWindowOfQueriesChoosesByTheirMeanScore) {
  for (const index_t window : {2, 5, 40, 200}) {
    Lockstep<float, NeverFull> both({.shape = shape, .capacity = 16, .observation_window = window}, {},
                                    reference::never_full());
    both.prefill(60);
    both.step(5);
  }
}

TEST(Prompt, AWindowReachesAcrossChunks) {
  Lockstep<float, NeverFull> both({.shape = shape, .capacity = 16, .observation_window = 9}, {},
                                  reference::never_full());
  for (const index_t chunk : {30, 1, 4, 2}) both.prefill(chunk);
  both.step(5);
}

TEST(Prompt, AWindowOfQueriesSeesAWindowOfPositions) {
  Lockstep<float, NeverFull> both(
      {.shape = shape, .attention = {.window = 20, .sinks = 3}, .capacity = 8, .observation_window = 6}, {},
      reference::never_full());
  both.prefill(60);
  both.step(5);
}

TEST(Prompt, MoreOfItMayFollowDecodedTokens) {
  Lockstep<float, QuerySimilarity> both({.shape = shape, .capacity = 16, .observation_window = 3}, {3, 0.8F},
                                        reference::query_similarity(3, 0.8F));
  both.prefill(40);
  both.step(7);
  both.prefill(2);  // fewer than the window: it does not reach back over decoded tokens
  both.step(7);
  both.prefill(30);
  both.step(7);
}

TEST(Prompt, WithoutOneTheFirstStepIsFull) {
  Lockstep<float, NeverFull> both({.shape = shape, .capacity = 6}, {}, reference::never_full());
  both.step(1);
  EXPECT_EQ(both.decoder().layer(0).last_step(0), StepKind::full);
  both.step(20);
  EXPECT_EQ(both.decoder().layer(0).statistics().heads[0].full_steps, 1U);
}

TEST(Prompt, DecodeStepsCountFromItsEnd) {
  Decoder<float, FixedStride> decoder({1, shape}, {.capacity = 8}, {4});
  Tokens tokens(shape, 1);
  reference::prefill(decoder, tokens.next(50));
  for (index_t step = 1; step <= 9; ++step) {
    reference::decode(decoder, tokens.next(1));
    EXPECT_EQ(decoder.layer(0).last_step(1), step % 4 == 0 ? StepKind::full : StepKind::recycled) << step;
  }
  reference::prefill(decoder, tokens.next(5));
  for (index_t step = 1; step <= 4; ++step) {
    reference::decode(decoder, tokens.next(1));
    EXPECT_EQ(decoder.layer(0).last_step(1), step % 4 == 0 ? StepKind::full : StepKind::recycled) << step;
  }
}

/// The outputs of a prompt and of the steps after it. Decoder and model have one layer.
reference::Bits run(const AttentionOptions& attention, const std::vector<index_t>& chunks) {
  Decoder<bfloat16, FixedStride> decoder({1, shape}, {.capacity = 32, .attention = attention}, {4},
                                         {.observation_window = 5});
  Tokens tokens(shape, 11);
  reference::Bits all;
  for (const index_t chunk : chunks) {
    const reference::Bits one = reference::prefill(decoder, tokens.next(chunk));
    all.insert(all.end(), one.begin(), one.end());
  }
  const reference::Bits steps = reference::decode(decoder, tokens.next(10));
  all.insert(all.end(), steps.begin(), steps.end());
  return all;
}

TEST(Prompt, ChunksOfAnySizeGiveTheSameBits) {
  for (const AttentionOptions& attention :
       {AttentionOptions{}, AttentionOptions{.window = 100, .sinks = 5}, AttentionOptions{.window = 7}}) {
    const reference::Bits whole = run(attention, {700});
    EXPECT_EQ(run(attention, {350, 350}), whole);
    EXPECT_EQ(run(attention, {1, 64, 63, 65, 5, 257, 245}), whole);
    EXPECT_EQ(run(attention, {256, 256, 188}), whole);
    std::vector<index_t> sevens(100, 7);
    EXPECT_EQ(run(attention, sevens), whole);
    std::vector<index_t> ones(20, 1);
    ones.push_back(680);
    EXPECT_EQ(run(attention, ones), whole);
  }
}

}  // namespace
