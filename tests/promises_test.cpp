// What the library promises about bits: threads, executors, schedules that read everything, ties.
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "reference/feed.hpp"

namespace {

using namespace recycled;
using reference::Bits;
using reference::Token;

constexpr AttentionOptions whole{};
constexpr AttentionOptions windowed{.window = 90, .sinks = 5};

/// The bits of a prompt and of the steps after it.
template <class T, class Policy, class E = Serial>
Bits run(const Shape& shape, const LayerOptions& options, const Policy& policy, index_t prompt, index_t steps,
         E&& executor = {}) {
  Decoder<T, Policy> decoder({1, shape}, options, policy);
  reference::Tokens tokens(shape, 8);
  Bits all;
  if (prompt > 0) all = reference::prefill(decoder, tokens.next(prompt), executor);
  const Bits rest = reference::decode(decoder, tokens.next(steps), executor);
  all.insert(all.end(), rest.begin(), rest.end());
  return all;
}

/// A host's own parallel-for: a thread an index, in no order.
void host_parallel_for(index_t n, const auto& f) {
  std::vector<std::thread> threads;
  for (index_t i = n; i-- > 0;) threads.emplace_back([&f, i] { f(i); });
  for (std::thread& thread : threads) thread.join();
}

TEST(SameBits, ForAnyNumberOfThreads) {
  for (const Shape& shape : {Shape{9, 3, 64}, Shape{4, 1, 46, 20}}) {
    for (const AttentionOptions& attention : {whole, AttentionOptions{.window = 450, .sinks = 5}}) {
      // Long enough that a single KV head is cut in several pieces, full and recycled.
      const LayerOptions options{.capacity = 300, .attention = attention};
      const Bits serial = run<bfloat16>(shape, options, FixedStride{4}, 600, 9);
      for (const int threads : {1, 2, 3, 8}) {
        ThreadPool pool(threads);
        EXPECT_TRUE(run<bfloat16>(shape, options, FixedStride{4}, 600, 9, pool) == serial) << threads << " threads";
      }
    }
  }
}

TEST(SameBits, ThroughAHostsParallelFor) {
  const Shape shape{6, 2, 32};
  const LayerOptions options{.capacity = 300};
  const auto host = [](index_t n, auto&& f) { host_parallel_for(n, f); };
  EXPECT_TRUE(run<half>(shape, options, QuerySimilarity{3, 0.8F}, 500, 12, host) ==
              run<half>(shape, options, QuerySimilarity{3, 0.8F}, 500, 12));
}

TEST(SameBits, ThePiecesReallyRunOnSeveralThreads) {
  std::atomic<index_t> most{0};
  const auto host = [&most](index_t n, auto&& f) {
    if (n > most) most = n;
    host_parallel_for(n, f);
  };
  run<float>({6, 2, 32}, {.capacity = 300}, FixedStride{4}, 500, 1, host);
  EXPECT_GE(most, 4);
}

template <class Policy>
void expect_bits_of_full_attention(const Policy& policy, index_t capacity, index_t prompt, index_t steps,
                                   const AttentionOptions& attention) {
  const Shape shape{6, 2, 46};
  SCOPED_TRACE(testing::Message() << "prompt " << prompt << ", window " << attention.window);
  const Bits expected = run<half>(shape, {.attention = attention}, AlwaysFull{}, prompt, steps);
  EXPECT_TRUE(run<half>(shape, {.capacity = capacity, .attention = attention}, policy, prompt, steps) == expected);
}

TEST(CapacityOfAllPositions, GivesTheBitsOfFullAttention) {
  for (const AttentionOptions& attention : {whole, windowed, AttentionOptions{.window = 90}}) {
    for (const index_t prompt : {0, 1, 70, 300}) {
      expect_bits_of_full_attention(NeverFull{}, prompt + 150, prompt, 150, attention);
      expect_bits_of_full_attention(FixedStride{7}, prompt + 150, prompt, 150, attention);
      expect_bits_of_full_attention(QuerySimilarity{3, 0.8F}, prompt + 150, prompt, 150, attention);
    }
  }
}

TEST(CapacityOfTheWindow, GivesTheBitsOfFullAttention) {
  for (const index_t prompt : {0, 50, 93, 200}) {
    expect_bits_of_full_attention(NeverFull{}, windowed.window + windowed.sinks, prompt, 200, windowed);
    expect_bits_of_full_attention(FixedStride{7}, windowed.window + windowed.sinks, prompt, 200, windowed);
  }
}

TEST(StrideOne, GivesTheBitsOfFullAttention) {
  for (const AttentionOptions& attention : {whole, windowed}) {
    for (const index_t capacity : {1, 30, 1000}) {
      expect_bits_of_full_attention(FixedStride{1}, capacity, 70, 60, attention);
      expect_bits_of_full_attention(FixedStride{1}, capacity, 0, 120, attention);
      expect_bits_of_full_attention(QuerySimilarity{1, 1.0F}, capacity, 70, 60, attention);
    }
  }
}

TEST(FullSteps, GiveTheBitsOfFullAttentionAlsoBeyondTheCapacity) {
  const Shape shape{6, 2, 32};
  for (const AttentionOptions& attention : {whole, windowed}) {
    Decoder<float, AlwaysFull> full({1, shape}, {.attention = attention});
    Decoder<float, FixedStride> recycled({1, shape}, {.capacity = 40, .attention = attention}, {5});
    reference::Tokens tokens(shape, 3);
    int different = 0;
    for (index_t step = 1; step <= 300; ++step) {
      const std::vector<Token> one = tokens.next(1);
      const bool same = reference::decode(full, one) == reference::decode(recycled, one);
      // A step attends to 40 entries and its own token: until then nothing is missing.
      if (step % 5 == 0 || step <= 41) {
        EXPECT_TRUE(same) << "step " << step;
      } else {
        different += same ? 0 : 1;
      }
    }
    EXPECT_GT(different, 180);  // and beyond it, recycled steps are something else
  }
}

TEST(Ties, GoToTheLowerPosition) {
  // All keys are equal, and so are all scores.
  const Shape shape{2, 1, 16};
  reference::Random random(1);
  const std::vector<float> key = random.row(16), query = random.row(32);
  std::vector<float> out(32);
  Decoder<float, FixedStride> decoder({1, shape}, {.capacity = 5}, {10});
  for (int j = 0; j < 30; ++j) decoder.step(0, query, key, random.row(16), out);
  EXPECT_EQ(decoder.layer(0).last_step(0), StepKind::full);
  EXPECT_EQ(decoder.layer(0).recycled_positions(0), (std::vector<index_t>{0, 1, 2, 3, 4}));
  // Of equal scores the lowest position leaves.
  decoder.step(0, query, key, random.row(16), out);
  EXPECT_EQ(decoder.layer(0).recycled_positions(0), (std::vector<index_t>{1, 2, 3, 4, 30}));
  for (int j = 0; j < 6; ++j) decoder.step(0, query, key, random.row(16), out);
  EXPECT_EQ(decoder.layer(0).recycled_positions(0), (std::vector<index_t>{32, 33, 34, 35, 36}));
}

TEST(OneTokenAlone, IsItsOwnValue) {
  const Shape shape{4, 2, 8};
  Decoder<float> decoder({1, shape}, {.capacity = 3});
  reference::Tokens tokens(shape, 1);
  const Token token = tokens.next();
  std::vector<float> out(32);
  decoder.step(0, token.query, token.key, token.value, out);
  for (std::size_t h = 0; h < 4; ++h) {
    for (std::size_t v = 0; v < 8; ++v) EXPECT_EQ(out[h * 8 + v], token.value[h / 2 * 8 + v]);
  }
}

}  // namespace
