// Keyformer's noise, its temperature and its seed; what it keeps is in baselines_test.cpp.
#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "reference/feed.hpp"
#include "reference/messages.hpp"

namespace {

using namespace recycled;
using reference::Positions;

TEST(Keyformer, HasATemperatureThatRisesToTwo) {
  Keyformer keyformer{.recent = 1, .tokens = 100};
  std::vector<float> ranks(30);
  const std::vector<float> log_weights(30, -3);
  keyformer.rank({log_weights, true, 1}, ranks);
  EXPECT_EQ(keyformer.temperature(10), 1);
  EXPECT_EQ(keyformer.temperature(29), 1);
  EXPECT_EQ(keyformer.temperature(30), 1.01F);
  EXPECT_EQ(keyformer.temperature(79), 1.5F);
  EXPECT_EQ(keyformer.temperature(129), 2);
  EXPECT_EQ(keyformer.temperature(1000), 2);
  ranks.resize(50);  // a full step while generating
  keyformer.rank({std::vector<float>(50, -3), false, 1}, ranks);
  EXPECT_EQ(keyformer.temperature(79), 1.5F);
  keyformer.truncate(20);
  EXPECT_EQ(keyformer.temperature(69), 1.5F);
}

TEST(Keyformer, CountsFromTheFirstStepWhereTheHostChoseTheSet) {
  Keyformer keyformer{.recent = 1, .tokens = 10};
  const std::vector<index_t> positions{3, 29, 7};
  std::vector<float> ranks(3);
  keyformer.attended({positions, std::vector<float>(3, -1)}, ranks);
  EXPECT_EQ(keyformer.temperature(28), 1);
  EXPECT_EQ(keyformer.temperature(29), 1.1F);
}

TEST(Keyformer, RefusesParametersThatMeanNothing) {
  const auto message = [](const Keyformer& keyformer) { return message_of([&] { keyformer.validate(); }); };
  EXPECT_EQ(message({.recent = 1, .observation_window = 1, .tokens = 1}), "");
  EXPECT_EQ(message({.recent = 0}), says("Keyformer.recent", "0", "at least 1; a quarter of the capacity is usual"));
  EXPECT_EQ(message({.recent = 1, .observation_window = 0}), says("Keyformer.observation_window", "0", "at least 1"));
  EXPECT_EQ(message({.recent = 1, .tokens = 0}), says("Keyformer.tokens", "0", "at least 1"));
  EXPECT_EQ(message({.recent = 1, .prompt = -1}), says("Keyformer.prompt", "-1", "0 or more"));
}

TEST(Gumbel, HasItsMeanAndVarianceAndIsFinite) {
  constexpr index_t count = 1000000;
  double sum = 0, squares = 0, neighbours = 0;
  float most = 0, before = 0;
  for (index_t i = 0; i < count; ++i) {
    const float noise = detail::gumbel(1, i / 1000, i % 1000);
    sum += static_cast<double>(noise);
    squares += static_cast<double>(noise) * static_cast<double>(noise);
    neighbours += static_cast<double>(noise) * static_cast<double>(before);
    before = noise;
    most = std::max(most, noise);
  }
  const double mean = sum / count;
  EXPECT_NEAR(mean, 0.577216, 0.005);
  EXPECT_NEAR(squares / count - mean * mean, 1.644934, 0.02);
  EXPECT_NEAR(neighbours / count - mean * mean, 0, 0.01);
  EXPECT_GT(most, 11);
}

TEST(Gumbel, DependsOnSeedQueryAndPosition) {
  const float noise = detail::gumbel(1, 2, 3);
  EXPECT_EQ(detail::gumbel(1, 2, 3), noise);
  EXPECT_NE(detail::gumbel(2, 2, 3), noise);
  EXPECT_NE(detail::gumbel(1, 3, 3), noise);
  EXPECT_NE(detail::gumbel(1, 2, 4), noise);
  EXPECT_NE(detail::gumbel(1, 3, 2), noise);
}

TEST(Keyformer, ChoosesOtherwiseBySeed) {
  std::set<Positions> chosen;
  for (const std::uint64_t seed : {1U, 2U, 1U, 2U}) {
    const Shape shape{4, 2, 16};
    Decoder<float, NeverFull, Keyformer> decoder({1, shape}, {.capacity = 12}, {}, {.recent = 3, .seed = seed});
    reference::Tokens tokens(shape, 6);
    reference::prefill(decoder, tokens.next(60));
    reference::decode(decoder, tokens.next(30));
    chosen.insert(decoder.layer(0).recycled_positions(0));
  }
  EXPECT_EQ(chosen.size(), 2U);
}

}  // namespace
