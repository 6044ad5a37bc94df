// The one merge: parts of a softmax put together are the whole, in any order, empty parts and NaN included.
#include <gtest/gtest.h>

#include <recycled/kernels/softmax_state.hpp>

#include "reference/random.hpp"

namespace {

using recycled::index_t;
using recycled::SoftmaxState;

constexpr index_t dim = 5;
constexpr float inf = std::numeric_limits<float>::infinity();
constexpr float nan = std::numeric_limits<float>::quiet_NaN();

/// A state that owns its output.
struct Part {
  std::vector<float> output = std::vector<float>(dim, 0.0F);
  SoftmaxState state{.output = output.data()};

  Part() = default;
  Part(const Part& other) : output(other.output), state{other.state.max, other.state.sum, output.data()} {}
  Part& operator=(const Part&) = delete;

  /// The state of one position.
  static Part of(float logit, const std::vector<float>& value) {
    Part part;
    part.output.assign(value.begin(), value.end());
    part.state = {logit, 1, part.output.data()};
    return part;
  }
  std::vector<float> normalized() const {
    std::vector<float> out(dim, nan);
    state.normalize(out.data(), dim);
    return out;
  }
};

TEST(SoftmaxState, MergedPositionsAreTheAttentionOverAll) {
  reference::Random random(1);
  for (const float spread : {1.0F, 30.0F, 5e5F}) {
    const reference::Rows keys = random.rows(20, 1, spread), values = random.rows(20, dim);
    const reference::Attention expected = reference::attend(std::vector<float>{1}, keys, values, {.scale = 1});
    Part forwards, left, right;
    for (std::size_t j = 0; j < 20; ++j) {
      const Part one = Part::of(keys[j].front(), values[j]);
      forwards.state.merge(one.state, dim);
      (j % 3 == 0 ? left : right).state.merge(one.state, dim);
    }
    right.state.merge(left.state, dim);
    for (const Part* part : {&forwards, &right}) {
      EXPECT_TRUE(reference::near(part->normalized(), expected));
      EXPECT_TRUE(reference::near(part->state.lse(), expected.lse, expected));
    }
  }
}

TEST(SoftmaxState, OfNoPositionIsZeroWithLseMinusInfinity) {
  Part empty;
  const Part other;
  empty.state.merge(other.state, dim);
  EXPECT_EQ(empty.state.max, -inf);
  EXPECT_EQ(empty.state.lse(), -inf);
  EXPECT_EQ(empty.normalized(), std::vector<float>(dim, 0.0F));
}

TEST(SoftmaxState, NoPositionChangesNoBit) {
  const Part some = Part::of(-3e4F, {1, -2, 3, -4, 0.1F}), empty;
  Part before(some), after(empty);
  before.state.merge(empty.state, dim);
  after.state.merge(some.state, dim);
  for (const Part* part : {&before, &after}) {
    EXPECT_EQ(part->state.max, -3e4F);
    EXPECT_EQ(part->state.sum, 1);
    EXPECT_EQ(part->output, some.output);
  }
}

TEST(SoftmaxState, NaNInAPartIsInTheWhole) {
  for (const bool poisoned_first : {true, false}) {
    // As a kernel leaves it: a maximum of the logits that are numbers, if any, and a sum that is none.
    for (const float max : {-inf, 2.0F, 100.0F}) {
      Part poisoned = Part::of(max, std::vector<float>(dim, nan)), sound = Part::of(5, {1, 2, 3, 4, 5});
      poisoned.state.sum = nan;
      Part& first = poisoned_first ? poisoned : sound;
      Part& second = poisoned_first ? sound : poisoned;
      first.state.merge(second.state, dim);
      EXPECT_TRUE(std::isnan(first.state.lse()));
      for (const float x : first.normalized()) EXPECT_TRUE(std::isnan(x));
    }
  }
}

}  // namespace
