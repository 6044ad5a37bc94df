// Rows that are free, masked, out of range or between others may hold anything: no bit changes.
#include "stress/life.hpp"

namespace {

using namespace recycled;
using reference::at, reference::Poison, reference::Random;
using stress::Life, stress::Outcome;

/// Which rows a call over `length` positions must not look at, of the layer's `life` in these rows.
enum class Where { beyond_the_length, out_of_the_window, not_held };

/// Spoils such rows before every call; what may still be read is as in `sound`.
template <Scalar T, Scalar R>
class Spoiler {
 public:
  using Cache = reference::Cache<T>;

  Spoiler(const Life<T, R>& life, const Cache& sound, Where where, Poison kind)
      : life_(life), sound_(sound), where_(where), kind_(kind) {}

  void operator()(Cache& rows, const reference::AnyLayer<T>& layer, index_t length) {
    rows = sound_;
    for (index_t p = 0; p < rows.length(); ++p) {
      if (!hides(p, layer, length)) continue;
      rows.spoil(p, kind_);
      ++spoilt;
    }
  }
  long spoilt = 0;

 private:
  bool hides(index_t p, const reference::AnyLayer<T>& layer, index_t length) const {
    if (where_ == Where::beyond_the_length) return p >= length;
    if (where_ == Where::out_of_the_window) {
      // The first step chooses with the prompt's last queries, which see what its own token does not.
      const index_t first = steps_of(layer) > 0 ? length - 1 : life_.prompt - life_.selection.observation_window;
      if (first < 0 || length <= life_.prompt) return false;
      const Visible visible(life_.options.attention, first);
      return p < visible.window.begin && !visible.contains(p);
    }
    // Once there is a set, a layer that never refreshes reads the new row alone; one whose set is all that there is
    // reads the host's rows.
    if (layer.length() <= life_.prompt || p + 1 >= length) return false;
    const auto all = static_cast<std::size_t>(Visible(life_.options.attention, length - 1).size());
    for (index_t g = 0; g < life_.shape.kv_heads; ++g) {
      if (layer.recycled_positions(g).size() + 1 >= all) return false;
    }
    return true;
  }

  static std::uint64_t steps_of(const reference::AnyLayer<T>& layer) {
    const HeadStatistics& head = layer.statistics().heads[0];
    return head.full_steps + head.recycled_steps;
  }

  const Life<T, R>& life_;
  const Cache& sound_;
  Where where_;
  Poison kind_;
};

/// Lives whose layer must not look at some rows are as they are with sound ones; how many rows were spoilt.
template <Scalar T, Scalar R = T>
long run(Where where) {
  long spoilt = 0;
  ThreadPool pool(1);
  stress::cases(stress::effort(16), [&](Random& random) {
    Life<T, R> life(random);
    if (where == Where::out_of_the_window) {
      life.options.attention.window = random.between(1, 40);
      life.options.attention.sinks = random.between(0, 4);
    }
    if (where == Where::not_held) {
      life.schedule = {NeverFull{}};
      life.steady = true;
      life.options.sketch = {};  // now and then looks at all keys
    }
    const auto rows = life.cache(random, Life<T, R>::any_layout(random));
    const Outcome expected = life.live(rows, pool);
    for (const Poison kind : reference::every_poison) {
      Spoiler<T, R> spoiler(life, rows, where, kind);
      EXPECT_TRUE(life.live(rows, pool, std::ref(spoiler)) == expected) << "poison " << static_cast<int>(kind);
      spoilt += spoiler.spoilt;
    }
  });
  EXPECT_GT(spoilt, 1000);
  return spoilt;
}

void run_types(Where where, const char* what) {
  const long spoilt =
      run<float>(where) + run<half>(where) + run<bfloat16>(where) + run<q8_0>(where) + run<float, half>(where);
  stress::report(std::string("poison, ") + what, std::to_string(spoilt) + " positions spoilt, 0 bits changed");
}

TEST(Poison, BeyondTheLengthIsNeverRead) { run_types(Where::beyond_the_length, "beyond the length"); }
TEST(Poison, OutOfTheWindowIsNeverRead) { run_types(Where::out_of_the_window, "out of the window"); }
TEST(Poison, OfRowsThatAreNotHeldIsNeverRead) { run_types(Where::not_held, "rows not held"); }

/// A layer's own rows that are free: a token that was taken back leaves its row where it stood.
template <Scalar T>
long run_free() {
  long compared = 0;
  ThreadPool pool(1);
  stress::cases(stress::effort(30), [&](Random& random) {
    Life<T> life(random);
    life.options.attention = {};
    life.options.capacity = std::max<index_t>(life.options.capacity, 8);
    const auto rows = life.cache(random);
    const index_t before = std::max<index_t>(life.length - 4, 1);
    const std::vector<float> query = random.row(life.shape.query_size());
    std::vector<float> expected(at(life.shape.query_heads * life.shape.value_dim)), out(expected.size());
    const auto sound = reference::make_layer<T>(life.shape, life.options, {NeverFull{}}, life.selection);
    sound->observe(query, before);
    sound->prepare(rows.view(before), pool);
    for (const Poison kind : reference::every_poison) {
      const auto layer = sound->copy(), twin = sound->copy();
      auto spoilt = rows;
      spoilt.spoil(before, kind);
      layer->step(query, spoilt.view(before + 1), out, pool);
      layer->rollback(1);
      twin->step(query, rows.view(before + 1), out, pool);
      twin->rollback(1);
      for (index_t end = before + 1; end <= life.length; ++end) {
        layer->step(query, rows.view(end), out, pool);
        twin->step(query, rows.view(end), expected, pool);
        ASSERT_EQ(reference::bits(out), reference::bits(expected)) << "poison " << static_cast<int>(kind);
        compared += life.shape.kv_heads;
      }
    }
  });
  return compared;
}

TEST(Poison, OfATokenThatWasTakenBackIsGone) {
  const long compared = run_free<float>() + run_free<half>() + run_free<bfloat16>() + run_free<q8_0>();
  stress::report("poison, tokens taken back", std::to_string(compared) + " outputs of KV heads, 0 bits changed");
}

}  // namespace
