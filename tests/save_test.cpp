// A saved sequence goes on with the same bits, wherever it was interrupted.
#include <gtest/gtest.h>

#include <functional>
#include <sstream>

#include "reference/feed.hpp"
#include "reference/saved.hpp"

namespace {

using namespace recycled;
using reference::Bits;
using reference::saved;
using reference::Token;
using reference::Tokens;

constexpr ModelShape model{2, {6, 2, 32}};
constexpr LayerOptions plain{.capacity = 20};
constexpr LayerOptions sketched{.capacity = 20, .sketch = {.coordinates = 8, .full_every = 5}};
constexpr LayerOptions windowed{.capacity = 20, .attention = {.soft_cap = 20, .window = 70, .sinks = 3}};

template <class Loaded>
void load(Loaded& into, const std::string& state) {
  std::istringstream stream(state);
  into.load(stream);
  EXPECT_EQ(static_cast<std::size_t>(stream.tellg()), state.size());
}

/// Interrupts a sequence at several places; each time what was saved there goes on as the original does.
template <class Decoder>
void expect_same_continuation(const std::function<Decoder()>& make) {
  Decoder original = make();
  Decoder used = make();  // is not what a load leaves it to be
  Tokens tokens(model.layer, 5);
  reference::prefill(used, tokens.next(75));
  reference::decode(used, tokens.next(9));
  const auto check = [&](const char* where) {
    SCOPED_TRACE(where);
    const std::string state = saved(original);
    for (Decoder loaded : {make(), used}) {
      load(loaded, state);
      EXPECT_EQ(loaded.length(), original.length());
      EXPECT_EQ(loaded.statistics(), original.statistics());
      EXPECT_TRUE(saved(loaded) == state);
      for (index_t i = 0; i < model.layers; ++i) {
        for (index_t g = 0; g < model.layer.kv_heads; ++g) {
          EXPECT_EQ(loaded.layer(i).recycled_positions(g), original.layer(i).recycled_positions(g));
          EXPECT_EQ(loaded.layer(i).last_step(g), original.layer(i).last_step(g));
        }
      }
      Decoder fork = original.fork();
      const std::vector<Token> more = tokens.next(40);
      EXPECT_EQ(reference::decode(loaded, more), reference::decode(fork, more));
      loaded.rollback(30);
      fork.rollback(30);
      EXPECT_EQ(reference::decode(loaded, more), reference::decode(fork, more));
      EXPECT_EQ(loaded.statistics(), fork.statistics());
      EXPECT_TRUE(saved(loaded) == saved(fork));
    }
  };
  check("newly made");
  reference::prefill(original, tokens.next(60));
  reference::prefill(original, tokens.next(40));
  check("behind the prompt");
  reference::decode(original, tokens.next(1));
  check("behind the first step");
  reference::decode(original, tokens.next(46));
  check("behind steps");
  original.rollback(13);
  check("behind a rollback");
  reference::prefill(original, tokens.next(11));
  check("behind a second prompt");
  reference::decode(original, tokens.next(300));
  check("in a long answer");
  original.clear();
  EXPECT_TRUE(saved(original) == saved(make())) << "what was cleared is as newly made";
  check("cleared");
}

template <class T, class Policy, class Keep = TopK, class R = T>
void expect_same_continuation(const LayerOptions& options, const Policy& policy, const Keep& keep = {}) {
  expect_same_continuation<Decoder<T, Policy, Keep, R>>(
      [&] { return Decoder<T, Policy, Keep, R>(model, options, policy, keep); });
}

TEST(Save, KeepsEveryTypeOfRows) {
  expect_same_continuation<float>(plain, FixedStride{7});
  expect_same_continuation<half>(plain, FixedStride{7});
  expect_same_continuation<bfloat16>(plain, FixedStride{7});
  expect_same_continuation<q8_0>(plain, FixedStride{7});
  expect_same_continuation<float, FixedStride, TopK, bfloat16>(plain, {7});
}
TEST(Save, KeepsWhatSchedulesHaveLearnt) {
  expect_same_continuation<half>(plain, QuerySimilarity{3, 0.8F});
  expect_same_continuation<half>(plain, SelfCalibrating{});
  expect_same_continuation<half>(plain, NeverFull{});
  expect_same_continuation<half>(plain, AlwaysFull{});
}
TEST(Save, KeepsSketches) {
  expect_same_continuation<half>(sketched, FixedStride{3}, TopK{.pool = 1});
  expect_same_continuation<float>(sketched, SelfCalibrating{.late = 0.1F}, TopK{.pool = 1});
  expect_same_continuation<half>({.capacity = 20, .sketch = {.keys = true}}, FixedStride{3});
}
TEST(Save, KeepsASetOfOnePosition) {
  expect_same_continuation<half>({.capacity = 1}, FixedStride{5});
  Decoder<half> decoder({1, model.layer}, {.capacity = 1});
  reference::decode(decoder, Tokens(model.layer, 9).next(1));
  Decoder<half> loaded({1, model.layer}, {.capacity = 1});
  load(loaded, saved(decoder));
  EXPECT_EQ(loaded.layer(0).recycled_positions(1), std::vector<index_t>{0});
}
TEST(Save, KeepsWindows) { expect_same_continuation<half>(windowed, FixedStride{5}); }
TEST(Save, KeepsWhatSelectionsRemember) {
  expect_same_continuation<half>(plain, FixedStride{5}, TopK{.memory = 0.7F, .observation_window = 32});
  expect_same_continuation<half>(plain, FixedStride{5}, HeavyHitters{.recent = 10, .observation_window = 8});
  expect_same_continuation<half>(plain, NeverFull{}, Keyformer{.recent = 5, .tokens = 40});
  expect_same_continuation<half>(plain, NeverFull{}, StreamingLlm{});
}

/// A policy of a host's own.
struct Counting {
  static constexpr bool per_head = true;
  std::vector<float> levels = {};
  index_t asked = 0;
  bool odd = false;

  StepKind decide(const StepInfo& info) {
    odd = !odd;
    levels.push_back(static_cast<float>(info.age));
    return (++asked + static_cast<index_t>(levels.back()) + (odd ? 1 : 0)) % 7 == 0 ? StepKind::full
                                                                                    : StepKind::recycled;
  }
  template <class Io>
  void transfer(Io& io) {
    io(levels, asked, odd);
  }
};
TEST(Save, KeepsWhatAPolicyOfTheHostNames) { expect_same_continuation<half>(plain, Counting{}); }

TEST(Save, ABudgetIsSavedByItself) {
  const auto make = [](const std::shared_ptr<Budget>& budget) {
    return Decoder<half, Budgeted>(model, sketched, {budget}, {.pool = 1});
  };
  const auto budget = std::make_shared<Budget>(0.4F), other = std::make_shared<Budget>(0.4F);
  Decoder<half, Budgeted> original = make(budget), loaded = make(other);
  Tokens tokens(model.layer, 6);
  reference::prefill(original, tokens.next(100));
  reference::decode(original, tokens.next(50));
  load(loaded, saved(original));
  EXPECT_EQ(other->spent(), 0);
  load(*other, saved(*budget));
  EXPECT_EQ(other->spent(), budget->spent());
  EXPECT_EQ(other->allowed_loss(), budget->allowed_loss());
  const std::vector<Token> more = tokens.next(100);
  EXPECT_EQ(reference::decode(loaded, more), reference::decode(original, more));
  EXPECT_EQ(saved(*other), saved(*budget));
}

TEST(Save, KeepsAChoiceForTheNextStep) {
  using Host = Decoder<half, NeverFull>;
  Host original{model, plain};
  Tokens tokens(model.layer, 7);
  reference::prefill(original, tokens.next(80));
  for (index_t i = 0; i < model.layers; ++i) original.choose_positions(i, std::vector<index_t>{3, 1, 4, 15, 9, 26});
  Host loaded{model, plain};
  load(loaded, saved(original));
  EXPECT_EQ(loaded.layer(1).recycled_positions(1), (std::vector<index_t>{9, 15, 26}));
  const std::vector<Token> more = tokens.next(5);
  EXPECT_EQ(reference::decode(loaded, more), reference::decode(original, more));
}

TEST(Save, KeepsATokenThatStoppedBetweenTwoLayers) {
  using Host = Decoder<half>;
  Host original{model, plain};
  Tokens tokens(model.layer, 8);
  reference::prefill(original, tokens.next(80));
  const Token token = tokens.next();
  std::vector<float> out(static_cast<std::size_t>(model.layer.query_size()));
  original.step(0, token.query, token.key, token.value, out);
  Host loaded{model, plain};
  load(loaded, saved(original));
  EXPECT_EQ(loaded.layer(0).length(), 81);
  EXPECT_EQ(loaded.layer(1).length(), 80);
  original.truncate(80);
  loaded.truncate(80);
  const std::vector<Token> more = tokens.next(15);
  EXPECT_EQ(reference::decode(loaded, more), reference::decode(original, more));
}

/// Rows that the host owns are the host's to save.
TEST(Save, OfALayerGoesOnOverTheSameRows) {
  const Shape shape{6, 2, 32};
  reference::Random random(9);
  Array<float> keys(index_t{300} * 2 * 32), values(keys.size());
  std::generate(keys.begin(), keys.end(), [&] { return random.normal(); });
  std::generate(values.begin(), values.end(), [&] { return random.normal(); });
  using Layer = LayerAttention<float, SelfCalibrating, TopK, half>;
  Layer original{shape, sketched, {}, {.pool = 1}};
  const auto steps = [&](Layer& layer, index_t until) {
    std::vector<float> all;
    reference::Random queries(10);
    while (layer.length() < until) {
      std::vector<float> out(static_cast<std::size_t>(6 * 32));
      layer.step(queries.row(6 * 32),
                 KvView<float>::position_major(keys.data(), values.data(), shape, layer.length() + 1), out);
      all.insert(all.end(), out.begin(), out.end());
    }
    return reference::bits(all);
  };
  original.observe(random.row(3 * 6 * 32), 200);
  steps(original, 240);
  Layer loaded{shape, sketched, {}, {.pool = 1}};
  load(loaded, saved(original));
  EXPECT_EQ(steps(loaded, 300), steps(original, 300));
  EXPECT_TRUE(saved(loaded) == saved(original));
}

TEST(Save, SeveralStatesFollowOneAnotherInAStream) {
  Decoder<half> first{model, plain}, second{model, plain};
  Tokens tokens(model.layer, 11);
  reference::prefill(first, tokens.next(30));
  reference::prefill(second, tokens.next(50));
  std::stringstream stream;
  first.save(stream);
  second.save(stream);
  Decoder<half> loaded{model, plain};
  loaded.load(stream);
  EXPECT_EQ(loaded.length(), 30);
  loaded.load(stream);
  EXPECT_EQ(loaded.length(), 50);
}

}  // namespace
