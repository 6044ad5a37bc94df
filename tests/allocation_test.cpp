// Steady decoding allocates nothing: every form of operator new counts.
#include <gtest/gtest.h>

#include <vector>

#include "reference/feed.hpp"
#include "reference/replaced_new.hpp"

namespace {

using namespace recycled;
using reference::Token;

constexpr Shape shape{6, 2, 40};
constexpr index_t prompt = 100;
constexpr index_t steps = 60;

template <class F>
long allocations_of(const F& f) {
  const long before = reference::allocations;
  f();
  return reference::allocations - before;
}

/// The allocations of decode steps, the first after the prompt included.
template <class T, class Policy, class E, class Keep = TopK>
long decoder_allocations(const Policy& policy, const AttentionOptions& attention, E&& executor,
                         const Keep& selection = {}) {
  Decoder<T, Policy, Keep> decoder({2, shape}, {.capacity = 24, .max_length = prompt + steps, .attention = attention},
                                   policy, selection);
  reference::Tokens tokens(shape, 1);
  reference::prefill(decoder, tokens.next(prompt), executor);
  const std::vector<Token> rest = tokens.next(steps);
  std::vector<float> out(reference::at(shape.query_heads * shape.head_dim));
  return allocations_of([&] {
    for (const Token& token : rest) {
      for (index_t i = 0; i < 2; ++i) decoder.step(i, token.query, token.key, token.value, out, executor);
    }
  });
}

template <class T, class Policy, class E>
long layer_allocations(const Policy& policy, const AttentionOptions& attention, E&& executor) {
  reference::Random random(1);
  const auto cache = reference::Cache<T>::random(shape, prompt + steps, random);
  LayerAttention<T, Policy> layer(shape, {.capacity = 24, .max_length = prompt + steps, .attention = attention},
                                  policy);
  const std::vector<float> query = random.row(6 * 40);
  std::vector<float> out(query.size());
  return allocations_of([&] {
    for (index_t length = prompt; length <= prompt + steps; ++length) {
      layer.step(query, cache.view(length), out, executor);
    }
  });
}

template <class E>
void expect_no_allocation(E&& executor) {
  for (const AttentionOptions& attention : {AttentionOptions{}, AttentionOptions{.window = 50, .sinks = 4}}) {
    EXPECT_EQ((decoder_allocations<bfloat16>(FixedStride{5}, attention, executor)), 0);
    EXPECT_EQ((decoder_allocations<float>(QuerySimilarity{3, 0.8F}, attention, executor)), 0);
    EXPECT_EQ((decoder_allocations<half>(NeverFull{}, attention, executor)), 0);
    EXPECT_EQ((decoder_allocations<float>(AlwaysFull{}, attention, executor)), 0);
    EXPECT_EQ((decoder_allocations<float>(SelfCalibrating{}, attention, executor,
                                          TopK{.memory = 0.7F, .observation_window = 16})),
              0);
    EXPECT_EQ((decoder_allocations<float>(NeverFull{}, attention, executor, HeavyHitters{.recent = 12})), 0);
    EXPECT_EQ((decoder_allocations<float>(FixedStride{9}, attention, executor, Keyformer{.recent = 6})), 0);
    EXPECT_EQ((layer_allocations<bfloat16>(FixedStride{5}, attention, executor)), 0);
    EXPECT_EQ((layer_allocations<float>(QuerySimilarity{3, 0.8F}, attention, executor)), 0);
    EXPECT_EQ((layer_allocations<float>(AlwaysFull{}, attention, executor)), 0);
  }
}

TEST(Allocation, TheCounterCounts) {
  EXPECT_EQ(allocations_of([] { ::operator delete(::operator new(40)); }), 1);  // a compiler may leave a vector out
  EXPECT_GE(allocations_of([] { Array<float> array(10); }), 1);
}

TEST(SteadyDecoding, AllocatesNothing) { expect_no_allocation(Serial{}); }

TEST(SteadyDecoding, AllocatesNothingOnAThreadPool) {
  ThreadPool pool(3);
  expect_no_allocation(pool);
}

TEST(SteadyDecoding, AllocatesNothingAfterClear) {
  Decoder<float> decoder({1, shape}, {.capacity = 24, .max_length = prompt + steps});
  reference::Tokens tokens(shape, 1);
  const std::vector<Token> all = tokens.next(prompt + steps);
  reference::decode(decoder, all);
  std::vector<float> out(reference::at(shape.query_heads * shape.head_dim));
  const long count = allocations_of([&] {
    decoder.clear();
    for (const Token& token : all) decoder.step(0, token.query, token.key, token.value, out);
    decoder.rollback(20);
    for (index_t i = 0; i < 20; ++i) decoder.step(0, all[0].query, all[0].key, all[0].value, out);
  });
  EXPECT_EQ(count, 0);
}

/// A copy has room for the maximal length from the start, as what it was copied from.
template <class Copy, class Step>
void expect_no_allocation_of_a_copy(Copy copy, const Step& step) {
  EXPECT_EQ(allocations_of([&] { step(copy); }), 0);
}

TEST(SteadyDecoding, AllocatesNothingAfterACopy) {
  reference::Tokens tokens(shape, 1);
  const std::vector<Token> all = tokens.next(prompt + steps);
  std::vector<float> out(reference::at(shape.query_heads * shape.head_dim));
  Decoder<float> decoder({2, shape}, {.capacity = 24, .max_length = prompt + steps});
  reference::decode(decoder, {all.begin(), all.begin() + prompt});
  expect_no_allocation_of_a_copy(decoder, [&](Decoder<float>& copy) {
    for (const Token& token : all) {
      if (copy.length() == prompt + steps) copy.rollback(steps);
      for (index_t i = 0; i < 2; ++i) copy.step(i, token.query, token.key, token.value, out);
    }
  });
  expect_no_allocation_of_a_copy(decoder.layer(1), [&](LayerAttention<float>& copy) {
    for (int i = 0; i < 30; ++i) {
      copy.truncate(prompt - 1);
      copy.step(all[0].query, decoder.view(1), out);
    }
  });
}

TEST(SteadyDecoding, AllocatesNothingAfterACopyOfASelectionThatRemembers) {
  reference::Tokens tokens(shape, 1);
  const std::vector<Token> all = tokens.next(prompt + steps);
  std::vector<float> out(reference::at(shape.query_heads * shape.head_dim));
  const auto check = [&]<class Keep>(const Keep& selection) {
    using Remembering = Decoder<float, FixedStride, Keep>;
    Remembering decoder({1, shape}, {.capacity = 24, .max_length = prompt + steps}, {3}, selection);
    reference::prefill(decoder, {all.begin(), all.begin() + prompt});
    reference::decode(decoder, {all.begin() + prompt, all.begin() + prompt + 5});
    expect_no_allocation_of_a_copy(decoder, [&](Remembering& copy) {
      for (index_t i = prompt + 5; i < prompt + steps; ++i) {
        const Token& token = all[reference::at(i)];
        copy.step(0, token.query, token.key, token.value, out);
      }
    });
  };
  check(HeavyHitters{.recent = 12, .observation_window = 4});
  check(TopK{.memory = 0.5F});
}

TEST(SteadyDecoding, OverPagesAllocatesAtTheFirstStepAlone) {
  reference::Random random(1);
  const auto cache = reference::Cache<float>::random(shape, prompt + steps, random, {.page = 3});
  const std::vector<float> query = random.row(shape.query_size());
  std::vector<float> out(reference::at(shape.query_size()));
  LayerAttention<float> layer(shape, {.capacity = 24, .max_length = prompt + steps});
  const auto step = [&](index_t length) { return allocations_of([&] { layer.step(query, cache.view(length), out); }); };
  EXPECT_LE(step(prompt), 1);  // room to gather rows in
  long rest = 0;
  for (index_t length = prompt + 1; length <= prompt + steps; ++length) rest += step(length);
  EXPECT_EQ(rest, 0);
}
TEST(SteadyDecoding, AllocatesNothingForASketch) {
  constexpr index_t more = 3 * prompt;
  for (const SketchOptions sketch : {SketchOptions{.coordinates = 16}, SketchOptions{.keys = true}}) {
    Decoder<half, SelfCalibrating> decoder({1, shape}, {.capacity = 24, .max_length = prompt + more, .sketch = sketch});
    reference::Tokens tokens(shape, 1);
    reference::prefill(decoder, tokens.next(prompt));
    const std::vector<Token> rest = tokens.next(more);
    std::vector<float> out(reference::at(shape.query_size()));
    const long count = allocations_of([&] {
      for (const Token& token : rest) decoder.step(0, token.query, token.key, token.value, out);
    });
    EXPECT_EQ(count, 0);
    EXPECT_GT(decoder.statistics()[0].total().sketched_steps, 20U);
  }
}

TEST(SteadyDecoding, AllocatesNothingForABudgetSetsFromOutsideAndRowsOfAnotherType) {
  ThreadPool pool(2);
  Decoder<float, Budgeted, TopK, half> decoder({2, shape}, {.capacity = 24, .max_length = prompt + steps},
                                               {std::make_shared<Budget>(0.4F)});
  reference::Tokens tokens(shape, 1);
  reference::prefill(decoder, tokens.next(prompt), pool);
  const std::vector<Token> rest = tokens.next(steps);
  std::vector<float> out(reference::at(shape.query_size()));
  const std::vector<index_t> chosen{1, 5, 9, 2, 4, 8};
  const std::vector<float> scores(2 * (prompt + steps), 0.5F);
  const long count = allocations_of([&] {
    for (const Token& token : rest) {
      const index_t length = decoder.length();
      if (length % 7 == 0) decoder.choose_positions(0, chosen, pool);
      if (length % 11 == 0) decoder.choose_by_scores(1, std::span(scores).first(reference::at(2 * length)), pool);
      for (index_t i = 0; i < 2; ++i) decoder.step(i, token.query, token.key, token.value, out, pool);
    }
  });
  EXPECT_EQ(count, 0);
  EXPECT_GT(decoder.statistics()[0].total().full_steps, 5U);
}

TEST(Decoding, WithoutAMaximalLengthAllocatesByDoubling) {
  Decoder<float> decoder({1, {2, 1, 8}}, {.capacity = 8});
  reference::Tokens tokens({2, 1, 8}, 1);
  const Token token = tokens.next();
  std::vector<float> out(16);
  const auto decode = [&](int count) {
    return allocations_of([&] {
      for (int i = 0; i < count; ++i) decoder.step(0, token.query, token.key, token.value, out);
    });
  };
  decode(1000);
  // From 1000 to 16000 positions every buffer (keys, values, scores, marks) doubles at most 5 times.
  EXPECT_LE(decode(15000), 4 * 5);
}

}  // namespace
