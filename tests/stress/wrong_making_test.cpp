// Every parameter of whatever is made (shapes, options, schedules, selections, views, pools), out of its range.
#include "reference/any_policy.hpp"
#include "stress/effort.hpp"
#include "stress/refusals.hpp"

namespace {

using namespace recycled;
using reference::AnySchedule, reference::AnySelection;
using stress::huge, stress::inf, stress::largest, stress::lowest, stress::nan, stress::Refusals;

constexpr Shape shape{4, 2, 32, 32};
constexpr LayerOptions options{.capacity = 4};
constexpr index_t too_wide = (1 << 24) + 1, too_long = (index_t{1} << 40) + 1;

template <Scalar T = float>
void make(const Shape& s, const LayerOptions& o = options, const AnySchedule& schedule = {},
          const AnySelection& selection = {}) {
  LayerAttention<T, AnySchedule, AnySelection> layer(s, o, schedule, selection);
}

void wrong_shapes(Refusals& refusals) {
  const auto dimension = [&](const char* name, index_t Shape::*part, std::initializer_list<index_t> values) {
    const auto with = [&](index_t value) {
      Shape s = shape;
      s.*part = value;
      return s;
    };
    refusals.expect_each("LayerAttention", name, values, "1 to 2^24", [&](index_t value) { make(with(value)); });
    refusals.expect_each("Decoder", name, values, "1 to 2^24", [&](index_t value) {
      Decoder<float, AlwaysFull> decoder({1, with(value)}, {});
    });
    refusals.expect_each("KvView::position_major", name, values, "1 to 2^24",
                         [&](index_t value) { KvView<float>::position_major(nullptr, nullptr, with(value), 1); });
    refusals.expect_each("KvView::head_major", name, values, "1 to 2^24",
                         [&](index_t value) { KvView<float>::head_major(nullptr, nullptr, with(value), 1, 1); });
  };
  dimension("Shape.query_heads", &Shape::query_heads, {0, -1, too_wide, huge, largest, lowest});
  dimension("Shape.kv_heads", &Shape::kv_heads, {0, -1, too_wide, huge, largest, lowest});
  dimension("Shape.head_dim", &Shape::head_dim, {0, -1, too_wide, huge, largest, lowest});
  dimension("Shape.value_dim", &Shape::value_dim, {-1, too_wide, huge, largest, lowest});
  refusals.expect("LayerAttention", "Shape.query_heads", 4, "a multiple of kv_heads = 3", [] { make({4, 3, 32}); });
  refusals.expect("LayerAttention", "Shape.head_dim", 33, "a multiple of 32", [] { make<q8_0>({4, 2, 33, 32}); });
  refusals.expect("LayerAttention", "Shape.value_dim", 8, "a multiple of 32", [] { make<q8_0>({4, 2, 32, 8}); });
  refusals.expect_each<index_t>("Decoder", "ModelShape.layers", {0, -1, (1 << 20) + 1, huge, lowest}, "1 to 2^20",
                                [](index_t layers) {
                                  Decoder<float, AlwaysFull> decoder({layers, shape}, {});
                                });
}

void wrong_options(Refusals& refusals) {
  const auto refuse = [&](const char* name, const auto& values, const char* expectation, const auto& set) {
    refusals.expect_each("LayerAttention", name, values, expectation, [&](auto value) {
      LayerOptions o = options;
      set(o, value);
      make(shape, o);
    });
  };
  using Counts = std::initializer_list<index_t>;
  using Floats = std::initializer_list<float>;
  refuse("LayerOptions.capacity", Counts{0, -1, too_long, huge, largest, lowest}, "1 to 2^40",
         [](LayerOptions& o, index_t value) { o.capacity = value; });
  refuse("LayerOptions.max_length", Counts{-1, too_long, huge, largest, lowest}, "0 to 2^40",
         [](LayerOptions& o, index_t value) { o.max_length = value; });
  refuse("LayerOptions.layer", Counts{-1, (1 << 20) + 1, huge, lowest}, "0 to 2^20",
         [](LayerOptions& o, index_t value) { o.layer = value; });
  refuse("SketchOptions.coordinates", Counts{-4, 2, 33, 68, huge, lowest}, "0 or a multiple of 4 up to 64",
         [](LayerOptions& o, index_t value) { o.sketch.coordinates = value; });
  refuse("SketchOptions.full_every", Counts{0, -1, lowest}, "at least 1",
         [](LayerOptions& o, index_t value) { o.sketch.full_every = value; });
  refuse("AttentionOptions.scale", Floats{nan, inf, -inf}, "a finite number",
         [](LayerOptions& o, float value) { o.attention.scale = value; });
  refuse("AttentionOptions.soft_cap", Floats{-1, nan, inf, -inf, 1e-40F}, "positive",
         [](LayerOptions& o, float value) { o.attention.soft_cap = value; });
  refuse("AttentionOptions.window", Counts{-1, lowest}, "a count of positions",
         [](LayerOptions& o, index_t value) { o.attention.window = value; });
  refuse("AttentionOptions.sinks", Counts{-1, lowest}, "a count of positions",
         [](LayerOptions& o, index_t value) { o.attention = {.window = 9, .sinks = value}; });
  refuse("AttentionOptions.sinks", Counts{1, largest}, "0 when there is no window",
         [](LayerOptions& o, index_t value) { o.attention.sinks = value; });
  // A layer that never recycles keeps nothing: any count will do, also none.
  const auto make_full = [](index_t capacity) {
    LayerAttention<float, AlwaysFull> layer(shape, {.capacity = capacity});
  };
  refusals.expect_each("AlwaysFull", "LayerOptions.capacity", Counts{-1, too_long, huge, largest, lowest}, "0 to 2^40",
                       make_full);
  for (const index_t capacity : {index_t{0}, index_t{1}, too_long - 1}) {
    EXPECT_EQ(message_of([&] { make_full(capacity); }), "");
  }
  // Counts that may be, of which the product may not.
  refusals.expect("LayerAttention", "recycle cache size", "8388608 * 1099511627777", "below 2^63", [] {
    make({1 << 23, 1 << 23, 1}, {.capacity = index_t{1} << 40});
  });
  EXPECT_THROW(make({1, 1, 1 << 24}, {.capacity = index_t{1} << 40}), std::invalid_argument);
  EXPECT_THROW(make({1 << 12, 1, 1}, {.capacity = 1, .max_length = index_t{1} << 40}), std::invalid_argument);
  refusals.calls += 2;
}

void wrong_schedules(Refusals& refusals) {
  const auto refuse = [&](const char* name, const auto& values, const char* expectation, const auto& with) {
    refusals.expect_each("schedule", name, values, expectation,
                         [&](auto value) { make(shape, options, {{with(value)}}); });
  };
  using Counts = std::initializer_list<index_t>;
  using Floats = std::initializer_list<float>;
  const Counts not_counts{0, -1, lowest};
  const auto budget = std::make_shared<Budget>(0.5F);
  refuse("FixedStride.stride", not_counts, "at least 1", [](index_t value) { return FixedStride{value}; });
  refuse("QuerySimilarity.stride", not_counts, "at least 1", [](index_t value) { return QuerySimilarity{value}; });
  refuse("QuerySimilarity.threshold", Floats{-1.5F, 1.5F, nan, inf, -inf}, "-1 to 1", [](float value) {
    return QuerySimilarity{1, value};
  });
  refuse("SelfCalibrating.late", Floats{0, 1, -0.5F, 2, nan, inf}, "between 0 and 1",
         [](float value) { return SelfCalibrating{.late = value}; });
  refuse("SelfCalibrating.stale", Floats{-0.5F, 1.5F, nan, inf}, "0 to 1",
         [](float value) { return SelfCalibrating{.stale = value}; });
  refuse("SelfCalibrating.longest", not_counts, "at least 1",
         [](index_t value) { return SelfCalibrating{.longest = value}; });
  refuse("SelfCalibrating.thresholds", Floats{-0.5F, 1.5F, nan, inf}, "0 to 1.01", [](float value) {
    return SelfCalibrating{.thresholds = {0.5F, value}};
  });
  refuse("Budgeted.longest", not_counts, "at least 1", [&](index_t value) { return Budgeted{budget, value}; });
  refuse("Budgeted.heads.loss", Floats{-0.5F, 1.5F, nan, inf}, "0 to 1", [&](float value) {
    return Budgeted{budget, 64, {{}, {.loss = value}}};
  });
  refuse("Budgeted.heads.turn", Floats{-0.5F, 2.5F, nan, inf}, "0 to 2", [&](float value) {
    return Budgeted{budget, 64, {{}, {.turn = value}}};
  });
  refusals.expect("schedule", "Budgeted.budget", "nullptr", "a budget", [] { make(shape, options, {Budgeted{}}); });
  refusals.expect_each("Budget", "Budget share", Floats{0, -1, 1.5F, nan, inf}, "more than 0, up to 1",
                       [](float value) { Budget one(value); });
  const std::string before = reference::saved(*budget);
  refusals.expect_each("Budget.account", "Cost.layer", {index_t{-1}, (index_t{1} << 20) + 1, lowest, largest},
                       "0 to 2^20", [&](index_t value) {
                         budget->account({value, 1, 2});
                       });
  const std::initializer_list<std::uint64_t> bytes{std::uint64_t{1} << 61, ~std::uint64_t{}};
  refusals.expect_each("Budget.account", "Cost.bytes_read", bytes, "less than 2^61", [&](std::uint64_t value) {
    budget->account({0, value, 2});
  });
  refusals.expect_each("Budget.account", "Cost.bytes_full", bytes, "less than 2^61", [&](std::uint64_t value) {
    budget->account({0, 1, value});
  });
  EXPECT_EQ(reference::saved(*budget), before);
}

void wrong_selections(Refusals& refusals) {
  const auto refuse = [&](const char* name, const auto& values, const char* expectation, const auto& with) {
    refusals.expect_each("selection", name, values, expectation,
                         [&](auto value) { make(shape, options, {}, {{with(value)}}); });
  };
  using Counts = std::initializer_list<index_t>;
  const Counts not_counts{0, -1, lowest};
  refuse("TopK.memory", std::initializer_list<float>{-0.5F, 1, 2, nan, inf}, "0 to less than 1",
         [](float value) { return TopK{.memory = value}; });
  refuse("TopK.pool", Counts{0, -1, 2, 4, huge, lowest}, "an odd number",
         [](index_t value) { return TopK{.pool = value}; });
  refuse("TopK.observation_window", not_counts, "at least 1",
         [](index_t value) { return TopK{.observation_window = value}; });
  refuse("StreamingLlm.sinks", Counts{-1, lowest}, "0 or more", [](index_t value) { return StreamingLlm{value}; });
  refuse("HeavyHitters.recent", not_counts, "at least 1", [](index_t value) { return HeavyHitters{value}; });
  refuse("HeavyHitters.observation_window", not_counts, "at least 1",
         [](index_t value) { return HeavyHitters{.recent = 1, .observation_window = value}; });
  refuse("Keyformer.recent", not_counts, "at least 1", [](index_t value) { return Keyformer{value}; });
  refuse("Keyformer.observation_window", not_counts, "at least 1",
         [](index_t value) { return Keyformer{.recent = 1, .observation_window = value}; });
  refuse("Keyformer.tokens", not_counts, "at least 1",
         [](index_t value) { return Keyformer{.recent = 1, .tokens = value}; });
  refuse("Keyformer.prompt", Counts{-1, lowest}, "0 or more",
         [](index_t value) { return Keyformer{.recent = 1, .prompt = value}; });
}

void wrong_rest(Refusals& refusals) {
  refusals.expect_each("ThreadPool", "ThreadPool.threads",
                       {0, -1, 1025, std::numeric_limits<int>::max(), std::numeric_limits<int>::min()}, "1 to 1024",
                       [](int value) { ThreadPool pool(value); });
  const float row[64] = {};
  refusals.expect_each<index_t>("KvView::head_major", "head_major: max_length", {-1, 0, 4, lowest},
                                "at least the length, 5",
                                [&](index_t value) { KvView<float>::head_major(row, row, shape, 5, value); });
  refusals.expect_each<index_t>("KvView::head_major", "head_major: max_length", {-1, -5, lowest}, "0 or more",
                                [&](index_t value) { KvView<float>::head_major(row, row, shape, value, value); });
  for (const index_t value : {huge, largest}) {
    refusals.expect("KvView::head_major", "head_major: room of a head", std::to_string(value) + " * 32",
                    "a product below 2^63", [&] { KvView<float>::head_major(row, row, shape, 5, value); });
  }
}

TEST(WrongArgument, OfWhateverIsMadeIsNamed) {
  Refusals refusals;
  wrong_shapes(refusals);
  wrong_options(refusals);
  wrong_schedules(refusals);
  wrong_selections(refusals);
  wrong_rest(refusals);
  stress::report("wrong arguments, making", refusals.figure());
}

}  // namespace
