// The same life under circumstances that must not matter: layouts, the order of heads and rows, room for all.
#include "reference/fed.hpp"
#include "stress/life.hpp"

namespace {

using namespace recycled;
using reference::at, reference::Random;
using stress::any_of, stress::Life, stress::Outcome;

/// `other` did what `expected` did; how many outputs of a KV head were compared.
long compare(const Outcome& other, const Outcome& expected, index_t kv_heads, const char* what) {
  EXPECT_TRUE(other == expected) << what;
  return static_cast<long>(expected.outputs.size()) * kv_heads;
}

void report(const char* what, long compared) {
  stress::report(std::string("metamorphic, ") + what,
                 std::to_string(compared) + " outputs of KV heads, 0 bits changed");
}

template <Scalar T, Scalar R = T>
long run_layouts() {
  long compared = 0;
  index_t kinds[3] = {};
  ThreadPool pool(1);
  stress::cases(stress::effort(40), [&](Random& random) {
    const Life<T, R> life(random);
    const auto rows = life.cache(random);
    const Outcome expected = life.live(rows, pool);
    for (const StepKind kind : expected.kinds) ++kinds[static_cast<int>(kind)];
    for (int i = 0; i < 3; ++i) {
      const auto layout = Life<T, R>::any_layout(random);
      compared += compare(life.live(rows.arranged(layout), pool), expected, life.shape.kv_heads, "another layout");
    }
  });
  for (const index_t steps : kinds) EXPECT_GT(steps, 50) << "of every kind";
  return compared;
}

TEST(Metamorphic, LayoutAndTheOrderOfPagesChangeNoBit) {
  report("layouts and pages", run_layouts<float>() + run_layouts<half>() + run_layouts<bfloat16>() +
                                  run_layouts<q8_0>() + run_layouts<float, half>());
}

template <Scalar T, Scalar R = T>
long run_heads() {
  long compared = 0;
  ThreadPool pool(1);
  stress::cases(stress::effort(60), [&](Random& random) {
    Life<T, R> life(random);
    if (!life.heads_are_alike()) return;
    const auto rows = life.cache(random);
    const Outcome expected = life.live(rows, pool);
    const index_t kv_heads = life.shape.kv_heads;
    for (index_t g = 0; g < kv_heads; ++g) life.heads.push_back(g);
    std::shuffle(life.heads.begin(), life.heads.end(),
                 std::mt19937_64(static_cast<std::uint64_t>(random.between(1, 99))));
    const Outcome other = life.live(rows.arranged(rows.layout(), life.heads), pool);
    Outcome back = other;
    const auto size = at(life.shape.group() * life.shape.value_dim);
    for (std::size_t i = 0; i < other.outputs.size(); ++i) {
      for (std::size_t at_head = 0; at_head < other.outputs[i].size(); at_head += size) {
        const std::size_t g = at_head / size % at(kv_heads);
        std::copy_n(other.outputs[i].begin() + static_cast<index_t>(at_head), size,
                    back.outputs[i].begin() + static_cast<index_t>(at_head + (at(life.heads[g]) - g) * size));
      }
    }
    for (std::size_t i = 0; i < other.kinds.size(); ++i) {
      const std::size_t g = i % at(kv_heads), to = i - g + at(life.heads[g]);
      back.kinds[to] = other.kinds[i];
      back.held[to] = other.held[i];
    }
    back.state = expected.state;  // is that of other heads
    compared += compare(back, expected, kv_heads, "heads in another order");
  });
  EXPECT_GT(compared, 500) << "heads that are alike";
  return compared;
}

TEST(Metamorphic, KvHeadsInAnotherOrderPermuteTheOutputs) {
  report("order of KV heads",
         run_heads<float>() + run_heads<half>() + run_heads<bfloat16>() + run_heads<q8_0>() + run_heads<float, half>());
}

template <Scalar T, Scalar R = T>
long run_room() {
  long compared = 0;
  ThreadPool pool(1);
  stress::cases(stress::effort(60), [&](Random& random) {
    Life<T, R> life(random), exact = life;
    const auto rows = life.cache(random, Life<T, R>::any_layout(random));
    life.choices = exact.choices = false;  // a choice is attended to, whatever there is room for
    exact.schedule = {AlwaysFull{}};
    exact.options.sketch = {};
    const auto check = [&](const char* what) {
      EXPECT_TRUE(life.live(rows, pool).same_outputs(exact.live(rows, pool))) << what;
      compared += (life.length - life.prompt) * life.shape.kv_heads;
    };
    Life<T, R> every = life;
    life.options.capacity = life.length + random.between(0, 3);
    check("room for all");
    life = every;
    life.options.sketch = {};
    life.schedule = {any_of<reference::AnySchedule>(
        random, {{FixedStride{1}}, {QuerySimilarity{1, 1.0F}}, {SelfCalibrating{.longest = 1}}})};
    check("a full step at every token");
  });
  return compared;
}

TEST(Metamorphic, RoomForAllOrStrideOneIsFullAttention) {
  report("K >= L or stride 1",
         run_room<float>() + run_room<half>() + run_room<bfloat16>() + run_room<q8_0>() + run_room<float, half>());
}

/// The same set, come by in two ways, so that its rows stand in other slots.
template <Scalar T, Scalar R = T>
long run_slots() {
  long compared = 0, different = 0;
  ThreadPool pool(1);
  stress::cases(stress::effort(40), [&](Random& random) {
    const Life<T, R> life(random);
    const Shape& shape = life.shape;
    if (life.length < 9 || life.options.capacity < 4) return;
    const auto rows = life.cache(random);
    LayerOptions options = life.options;
    options.attention = {};
    const auto straight = reference::make_layer<T, R>(shape, options, {NeverFull{}});
    straight->observe(random.row(shape.query_size()), life.length - 3);
    const auto around = straight->copy();
    std::vector<index_t> order(at(life.length - 3));
    std::iota(order.begin(), order.end(), index_t{0});
    std::vector<index_t> sets[3];
    for (auto& set : sets) {
      std::shuffle(order.begin(), order.end(), std::mt19937_64(static_cast<std::uint64_t>(random.between(1, 1 << 20))));
      set.assign(order.begin(), order.begin() + std::min(options.capacity, life.length - 3));
    }
    const std::vector<float> query = random.row(shape.query_size());
    std::vector<float> a(at(shape.query_heads * shape.value_dim)), b(a.size());
    const auto step = [&](auto& layer, const std::vector<index_t>& set, index_t length, std::vector<float>& out) {
      std::vector<index_t> all;
      for (index_t g = 0; g < shape.kv_heads; ++g) all.insert(all.end(), set.begin(), set.end());
      layer.choose_positions(all, rows.view(length), pool);
      layer.step(query, rows.view(length), out, pool);
    };
    for (index_t i = 0; i < 3; ++i) {
      step(*straight, sets[2], life.length - 2 + i, a);
      step(*around, sets[i], life.length - 2 + i, b);
    }
    different += reference::bits(a) == reference::bits(b) ? 0 : 1;
    std::vector<index_t> read = sets[2];
    read.push_back(life.length - 1);
    std::sort(read.begin(), read.end());
    for (index_t h = 0; h < shape.query_heads; ++h) {
      const index_t g = h / shape.group();
      EXPECT_EQ(straight->recycled_positions(g), around->recycled_positions(g));
      reference::Rows keys = rows.keys(g), values = rows.values(g);
      if (!std::same_as<T, R> && static_cast<index_t>(read.size()) < life.length) {
        for (auto* all : {&keys, &values}) {
          for (auto& row : *all) row = reference::rounded<R>(row);
        }
      }
      const auto truth =
          reference::attend(std::span(query).subspan(at(h * shape.head_dim), at(shape.head_dim)), keys, values, read);
      for (const auto* out : {&a, &b}) {
        EXPECT_TRUE(reference::near(std::span(*out).subspan(at(h * shape.value_dim), at(shape.value_dim)), truth));
        ++compared;
      }
    }
  });
  EXPECT_GT(different, 5) << "rows stood in other slots";
  return compared;
}

TEST(Metamorphic, TheOrderOfTheSlotsIsNotAttendedTo) {
  const long compared = run_slots<float>() + run_slots<half>() + run_slots<bfloat16>() + run_slots<float, half>();
  stress::report("metamorphic, order of slots",
                 std::to_string(compared) + " outputs of the same sets within the bound");
}

}  // namespace
