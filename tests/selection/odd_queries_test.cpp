// A query that is no number, under every selection: other KV heads don't notice, and its own head goes on with numbers.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <recycled/recycled.hpp>

#include "reference/feed.hpp"

namespace {

using namespace recycled;
using reference::at, reference::Token;
using Floats = std::vector<float>;

constexpr Shape shape{6, 3, 16};
constexpr index_t capacity = 10, stride = 4, prompt = 40, steps = 14, odd_head = 1;
constexpr index_t head_size = shape.query_heads / shape.kv_heads * shape.head_dim;

/// Which token's query is odd: the prompt's last one, or that of a step.
constexpr index_t in_prompt = -1;

template <class Keep>
class Twins {
 public:
  Twins(const Keep& selection, float odd, index_t when)
      : odd_(odd), when_(when), spoilt_(make(selection)), sound_(make(selection)), remembers_(remembers(selection)) {}

  void run() {
    reference::Tokens tokens(shape, 21);
    std::vector<Token> first = tokens.next(prompt);
    reference::prefill(sound_, first);
    if (when_ == in_prompt) spoil(first.back());
    reference::prefill(spoilt_, first);
    for (index_t i = 0; i < steps; ++i) step(i, tokens.next());
  }

 private:
  using Tried = Decoder<float, FixedStride, Keep>;
  static Tried make(const Keep& selection) { return Tried({1, shape}, {.capacity = capacity}, {stride}, selection); }
  void spoil(Token& token) const { token.query[at(odd_head * head_size + 3)] = odd_; }

  void step(index_t i, Token token) {
    SCOPED_TRACE(testing::Message() << "step " << i << ", the odd one " << when_);
    const Floats sound = out_of(sound_, token);
    if (i == when_) spoil(token);
    const Floats out = out_of(spoilt_, token);
    const LayerAttention<float, FixedStride, Keep>&layer = spoilt_.layer(0), &twin = sound_.layer(0);
    for (index_t g = 0; g < shape.kv_heads; ++g) {
      if (g == odd_head) continue;
      EXPECT_EQ(layer.last_step(g), twin.last_step(g));
      EXPECT_EQ(layer.recycled_positions(g), twin.recycled_positions(g));
      EXPECT_TRUE(std::equal(head(out, g), head(out, g + 1), head(sound, g)));
    }
    const bool finite =
        std::all_of(head(out, odd_head), head(out, odd_head + 1), [](float x) { return std::isfinite(x); });
    EXPECT_EQ(finite, i != when_);
    const bool after = i == when_ + 1;
    const StepKind usual = twin.last_step(odd_head);
    EXPECT_EQ(layer.last_step(odd_head), after && chose_ ? StepKind::full : usual);
    chose_ = layer.last_step(odd_head) == StepKind::full;
    const std::vector<index_t> held = layer.recycled_positions(odd_head);
    EXPECT_EQ(held.size(), at(capacity));
    EXPECT_TRUE(std::is_sorted(held.begin(), held.end(), std::less_equal<>()));
    // Once it has chosen again, what chooses by the present alone has forgotten.
    if (!remembers_ && i >= when_ + stride + 1) {
      EXPECT_EQ(held, twin.recycled_positions(odd_head));
    }
  }

  static bool remembers(const Keep& selection) {
    if constexpr (requires { selection.memory; }) return selection.memory > 0;
    return requires { selection.gathered; };
  }
  static auto head(const Floats& out, index_t g) { return out.begin() + g * head_size; }
  static Floats out_of(Tried& decoder, const Token& token) {
    Floats out(at(shape.query_size()));
    decoder.step(0, token.query, token.key, token.value, out);
    return out;
  }

  float odd_;
  index_t when_;
  Tried spoilt_, sound_;
  bool remembers_;
  bool chose_ = true;
};

/// At every step from one full one to the next, and in the prompt.
template <class Keep>
void run(const Keep& selection) {
  constexpr float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
  for (const float odd : {nan, inf}) {
    for (index_t when = in_prompt; when <= stride + 1; ++when) {
      SCOPED_TRACE(odd);
      Twins<Keep>(selection, odd, when).run();
    }
  }
}

TEST(OddQueries, LeaveASlidingWindowAsItIs) { run(SlidingWindow{}); }
TEST(OddQueries, LeaveSinksAndAWindowAsTheyAre) { run(StreamingLlm{}); }
TEST(OddQueries, AreForgottenByTopK) { run(TopK{.pool = 1}); }
TEST(OddQueries, LeaveTopKsMemoryNumbers) { run(TopK{.memory = 0.5F}); }
/// With one query head for each KV head such a query says nothing of any position.
TEST(OddQueries, LeaveWhatTopKRemembers) {
  constexpr index_t dim = 4, length = 12;
  constexpr Shape one{1, 1, dim};
  const Floats along{1, 0, 0, 0}, across{0, 1, 0, 0};
  Floats rows(at(length * dim), 0.0F);
  for (index_t p = 0; p < 3; ++p) rows[at(p * dim)] = rows[at((p + 3) * dim + 1)] = 40;
  const auto kv = [&](index_t to) { return KvView<float>::position_major(rows.data(), rows.data(), one, to); };
  for (const float odd : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    const Floats spoilt(at(dim), odd);
    for (const bool first : {false, true}) {
      LayerAttention<float, FixedStride, TopK> layer(one, {.capacity = 3}, {1}, {.memory = 0.9F, .pool = 1});
      Floats out(at(dim));
      index_t to = 7;
      layer.observe(first ? spoilt : along, to);
      layer.step(along, kv(++to), out);
      if (!first) layer.step(spoilt, kv(++to), out);
      EXPECT_EQ(layer.recycled_positions(0).size(), 3U);
      layer.step(across, kv(++to), out);
      EXPECT_EQ(layer.recycled_positions(0), (std::vector<index_t>{0, 1, 2})) << odd << (first ? ", prompt" : "");
    }
  }
}
TEST(OddQueries, LeaveHeavyHittersNumbers) { run(HeavyHitters{.recent = 5, .observation_window = 3}); }
TEST(OddQueries, LeaveKeyformerNumbers) { run(Keyformer{.recent = 3, .observation_window = 3}); }

}  // namespace
