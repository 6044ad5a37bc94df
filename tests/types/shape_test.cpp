// Shapes and options that can be, those that can't and what is said about them, and what a token sees.
#include <gtest/gtest.h>

#include <recycled/types/shape.hpp>

#include "reference/attention.hpp"
#include "reference/messages.hpp"

namespace {

using namespace recycled;

constexpr float inf = std::numeric_limits<float>::infinity();
constexpr float nan = std::numeric_limits<float>::quiet_NaN();

template <class T = float>
std::string rejection(const Shape& shape) {
  return message_of([&] { recycled::detail::checked<T>(shape); });
}
std::string option_rejection(const AttentionOptions& options) {
  return message_of([&] { recycled::detail::checked(options, Shape{8, 2, 64, 64}); });
}

TEST(Shape, KnowsItsGroupsAndSizes) {
  const Shape shape{33, 3, 46, 10};
  EXPECT_EQ(shape.group(), 11);
  EXPECT_EQ(shape.query_size(), 33 * 46);
  EXPECT_EQ(shape.output_size(), 33 * 10);
}

TEST(Shape, TakesHeadDimWhereNoValueDimIsGiven) {
  EXPECT_EQ(recycled::detail::checked<float>(Shape{8, 2, 46}).value_dim, 46);
  EXPECT_EQ(recycled::detail::checked<float>(Shape{8, 2, 46, 7}).value_dim, 7);
}

TEST(Shape, AcceptsEveryKindOfGroupAndAnyDimension) {
  for (const Shape& shape : {Shape{33, 3, 46}, Shape{48, 2, 33}, Shape{71, 1, 80}, Shape{5, 5, 576, 512},
                             Shape{1, 1, 1}, Shape{1 << 24, 1, 1 << 24}}) {
    EXPECT_EQ(rejection(shape), "");
    EXPECT_EQ(rejection<bfloat16>(shape), "");
  }
}

TEST(Shape, NamesTheDimensionThatIsOutOfRange) {
  EXPECT_EQ(rejection({0, 1, 8}), says("Shape.query_heads", "0", "1 to 2^24"));
  EXPECT_EQ(rejection({1, -1, 8}), says("Shape.kv_heads", "-1", "1 to 2^24"));
  EXPECT_EQ(rejection({1, 1, 0}), says("Shape.head_dim", "0", "1 to 2^24"));
  EXPECT_EQ(rejection({1, 1, 8, -3}), says("Shape.value_dim", "-3", "1 to 2^24"));
  EXPECT_EQ(rejection({1, 1, (1 << 24) + 1}), says("Shape.head_dim", "16777217", "1 to 2^24"));
  EXPECT_EQ(rejection({std::numeric_limits<index_t>::max(), 1, 1}),
            says("Shape.query_heads", "9223372036854775807", "1 to 2^24"));
}

TEST(Shape, WantsWholeGroups) {
  EXPECT_EQ(rejection({8, 3, 64}), says("Shape.query_heads", "8", "a multiple of kv_heads = 3"));
  EXPECT_EQ(rejection({2, 4, 64}), says("Shape.query_heads", "2", "a multiple of kv_heads = 4"));
}

TEST(Shape, WantsWholeBlocksForQ8) {
  EXPECT_EQ(rejection<q8_0>({8, 2, 96, 32}), "");
  EXPECT_EQ(rejection<q8_0>({8, 2, 80}), says("Shape.head_dim", "80", "a multiple of 32 for this KV type"));
  EXPECT_EQ(rejection<q8_0>({8, 2, 64, 16}), says("Shape.value_dim", "16", "a multiple of 32 for this KV type"));
}

TEST(AttentionOptions, ScaleIsOneOverTheRootOfHeadDimUnlessGiven) {
  EXPECT_EQ(recycled::detail::checked(AttentionOptions{}, Shape{8, 2, 64, 16}).scale, 0.125F);
  EXPECT_EQ(recycled::detail::checked(AttentionOptions{.scale = -2}, Shape{8, 2, 64, 16}).scale, -2);
}

TEST(AttentionOptions, AcceptsWhatMakesSense) {
  EXPECT_EQ(option_rejection({.soft_cap = 50, .window = 1, .sinks = 4}), "");
  EXPECT_EQ(option_rejection({.window = std::numeric_limits<index_t>::max()}), "");
}

TEST(AttentionOptions, NamesTheOptionThatMeansNothing) {
  EXPECT_EQ(option_rejection({.scale = nan}), says("AttentionOptions.scale", "nan", "a finite number"));
  EXPECT_EQ(option_rejection({.scale = -inf}), says("AttentionOptions.scale", "-inf", "a finite number"));
  const std::string cap = "0 (off) or a positive, finite number, its inverse finite too";
  EXPECT_EQ(option_rejection({.soft_cap = -1}), says("AttentionOptions.soft_cap", "-1", cap));
  EXPECT_EQ(option_rejection({.soft_cap = inf}), says("AttentionOptions.soft_cap", "inf", cap));
  EXPECT_EQ(option_rejection({.soft_cap = nan}), says("AttentionOptions.soft_cap", "nan", cap));
  EXPECT_EQ(option_rejection({.window = -1}), says("AttentionOptions.window", "-1", "0 (off) or a count of positions"));
  EXPECT_EQ(option_rejection({.window = 5, .sinks = -2}),
            says("AttentionOptions.sinks", "-2", "0 or a count of positions"));
  EXPECT_EQ(option_rejection({.sinks = 4}), says("AttentionOptions.sinks", "4", "0 when there is no window"));
}

TEST(Visible, HoldsExactlyWhatAWindowAndItsSinksShow) {
  for (index_t window = 0; window <= 12; ++window) {
    for (index_t sinks = 0; sinks <= (window > 0 ? 12 : 0); ++sinks) {
      for (index_t position = 0; position <= 14; ++position) {
        const AttentionOptions options{.window = window, .sinks = sinks};
        const Visible visible(options, position);
        const std::vector<index_t> expected = reference::seen_by(position, options);
        std::vector<index_t> contained, listed;
        for (index_t j = 0; j <= 20; ++j) {
          if (visible.contains(j)) contained.push_back(j);
        }
        for (const Range& range : {visible.sinks, visible.window}) {
          for (index_t j = range.begin; j < range.end; ++j) listed.push_back(j);
        }
        EXPECT_EQ(contained, expected) << "window " << window << ", sinks " << sinks << ", position " << position;
        EXPECT_EQ(listed, expected) << "window " << window << ", sinks " << sinks << ", position " << position;
        EXPECT_EQ(visible.size(), static_cast<index_t>(expected.size()));
      }
    }
  }
}

TEST(Visible, SurvivesTheLargestWindow) {
  const AttentionOptions options{.window = std::numeric_limits<index_t>::max(),
                                 .sinks = std::numeric_limits<index_t>::max()};
  EXPECT_EQ(Visible(options, 99).size(), 100);
}

TEST(Range, OfNothingHasSizeZero) {
  EXPECT_EQ((Range{5, 5}.size()), 0);
  EXPECT_EQ((Range{6, 5}.size()), 0);
  EXPECT_EQ((Range{5, 8}.size()), 3);
}

}  // namespace
