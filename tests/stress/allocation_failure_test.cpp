// Every allocation fails once, in turn: the call throws, nothing has changed, nothing leaks, and the call works again.
#include "reference/replaced_new.hpp"
#include "reference/saved.hpp"
#include "stress/life.hpp"

namespace {

using namespace recycled;
using reference::at, reference::Bits, reference::Failing, reference::Token;
using reference::saved;

using Host = Decoder<half, reference::AnySchedule, reference::AnySelection>;
constexpr Shape shape{4, 2, 16, 8};
constexpr index_t prompt = 254;  // two steps later a cache that was not told how long it gets is full

/// How a decoder is made, and how many positions it is told of.
struct Made {
  LayerOptions options;
  reference::AnySchedule schedule;
  reference::AnySelection selection;
  std::shared_ptr<Budget> budget = std::make_shared<Budget>(0.5F);  // whoever shares it
};
std::vector<Made> every_kind() {
  const auto budget = std::make_shared<Budget>(0.3F);
  return {{{.capacity = 6}, {FixedStride{3}}, {TopK{.memory = 0.5F, .observation_window = 4}}},
          {{.capacity = 6, .sketch = {.coordinates = 8, .full_every = 4}},
           {SelfCalibrating{}},
           {HeavyHitters{.recent = 3, .observation_window = 2}}},
          {{.capacity = 6, .max_length = 100, .sketch = {.coordinates = 8}},
           {Budgeted{budget}},
           {Keyformer{.recent = 2, .observation_window = 2}},
           budget},
          {{.capacity = 6, .max_length = prompt, .attention = {.window = 40, .sinks = 2}},
           {QuerySimilarity{2, 0.8F}},
           {StreamingLlm{.sinks = 2}}},
          {{.capacity = 6, .sketch = {.keys = true}}, {FixedStride{2}}, {TopK{.pool = 1}}},
          {{.capacity = 300}, {NeverFull{}}, {TopK{}}},
          {{.capacity = 6}, {AlwaysFull{}}, {SlidingWindow{}}}};
}

void load(auto& into, const std::string& state) {
  std::istringstream stream(state);
  into.load(stream);
}

long failed = 0, called = 0;

/// Makes `call` fail at its first allocation, at its second, ..., each time on a copy of `original`, until it passes.
/// `after` tells bits of what it leads to.
template <class Object, class Call, class After>
void fail_in_turn(const char* what, const Object& original, Budget& budget, const Call& call, const After& after) {
  SCOPED_TRACE(what);
  ++called;
  const std::string spent = saved(budget);
  const auto state_of = [&](const Object& object) { return saved(object) + saved(budget); };
  Object sound = original;
  call(sound);
  const std::string expected = state_of(sound);
  const Bits expected_bits = after(sound);
  for (long n = 1; !testing::Test::HasFailure(); ++n) {
    SCOPED_TRACE("allocation " + std::to_string(n));
    load(budget, spent);
    const long live = reference::live;
    bool throws = false, happened = false;
    {
      Object object = original;
      const std::string before = state_of(object);
      try {
        const Failing failing(n);
        call(object);
        happened = Failing::happened();
      } catch (const std::bad_alloc&) {
        throws = true;
      } catch (const std::invalid_argument&) {
        throws = true;  // a stream that could not grow
      }
      if (throws) {
        EXPECT_TRUE(state_of(object) == before) << "the state has changed";
        call(object);
      }
      EXPECT_TRUE(state_of(object) == expected) << "the next call does something else";
      EXPECT_TRUE(after(object) == expected_bits);
    }
    EXPECT_EQ(reference::live, live) << "memory leaks";
    if (!throws && !happened) break;
    ++failed;
  }
  load(budget, spent);
}

/// All that a decoder can be asked, where it is now.
void fail_every_call(Host& host, const Made& made, const std::string& elsewhere) {
  reference::Tokens tokens(shape, 5);
  const std::vector<Token> some = tokens.next(9), next = tokens.next(8);
  const auto queries = packed(some, &Token::query), keys = packed(some, &Token::key),
             values = packed(some, &Token::value);
  std::vector<float> out(9 * 4 * 8);
  const std::span<float> one = std::span(out).first(4 * 8);
  const std::vector<index_t> chosen{0, 2, 1, -1};
  const auto decoded = [&](Host& h) { return reference::decode(h, next); };
  const auto fails = [&](const char* what, const auto& call) { fail_in_turn(what, host, *made.budget, call, decoded); };

  fails("prefill", [&](Host& h) { h.prefill(0, queries, keys, values, out); });
  fails("step", [&](Host& h) { h.step(1, some[0].query, some[0].key, some[0].value, one); });
  if (host.length() > 3) {
    const std::vector<float> scores(at(2 * host.length()), 0.5F);
    fails("choose_positions", [&](Host& h) { h.choose_positions(0, chosen); });
    fails("choose_by_scores", [&](Host& h) { h.choose_by_scores(1, scores); });
    fails("rollback", [&](Host& h) { h.rollback(3); });
    fails("truncate", [&](Host& h) { h.truncate(1); });
  }
  fails("clear", [](Host& h) { h.clear(); });
  fails("fork", [&](Host& h) { static_cast<void>(h.fork()); });
  fails("share", [](Host& h) { h.share(std::make_shared<Scratch>()); });
  fails("statistics", [](Host& h) { static_cast<void>(h.statistics()); });
  fails("recycled_positions", [](Host& h) { static_cast<void>(h.layer(0).recycled_positions(1)); });
  fails("save", [](Host& h) {
    std::ostringstream stream;
    h.save(stream);
  });
  std::istringstream state(elsewhere);
  fails("load", [&](Host& h) {
    state.clear();
    state.seekg(0);
    h.load(state);
  });
  const std::string spent = saved(*made.budget);
  fails("a budget's save", [&](Host& /*h*/) { static_cast<void>(saved(*made.budget)); });
  fails("a budget's load", [&](Host& /*h*/) { load(*made.budget, spent); });
  Host other({2, shape}, made.options, made.schedule, made.selection);
  reference::decode(other, next);
  fails("assignment", [&](Host& h) { h = other; });
  fails("a wrong argument", [&](Host& h) {
    try {
      h.step(2, queries, keys, values, out);
    } catch (const std::invalid_argument&) {  // as it should be
    }
  });
}

TEST(FailedAllocation, LeavesADecoderAsItWas) {
  failed = called = 0;
  for (const Made& made : every_kind()) {
    Host host({2, shape}, made.options, made.schedule, made.selection);
    reference::Tokens tokens(shape, 4);
    Host further = host;
    reference::decode(further, tokens.next(20));
    const std::string elsewhere = saved(further);
    fail_every_call(host, made, elsewhere);
    reference::prefill(host, tokens.next(prompt));
    fail_every_call(host, made, elsewhere);
    reference::decode(host, tokens.next(2));
    fail_every_call(host, made, elsewhere);
  }
  EXPECT_GT(failed, 1000);
  stress::report("allocations failed, decoder", std::to_string(failed) + " in " + std::to_string(called) +
                                                    " calls, state unchanged, 0 leaks, next call works");
}

TEST(FailedAllocation, LeavesALayerOverPagesAsItWas) {
  failed = called = 0;
  reference::Random random(3);
  const auto rows = reference::Cache<half>::random(shape, 120, random, {.page = 3});
  const std::vector<float> queries = random.row(9 * 4 * 16), query = random.row(4 * 16);
  std::vector<float> out(9 * 4 * 8);
  const std::span<float> one = std::span(out).first(4 * 8);
  for (const Made& made : every_kind()) {
    Host::Layer layer(shape, made.options, made.schedule, made.selection);
    const auto decoded = [&](Host::Layer& l) {
      std::vector<float> all;
      for (index_t i = 0; i < 5; ++i) {
        l.step(query, rows.view(l.length() == 0 ? 91 : l.length() + 1), one);
        all.insert(all.end(), one.begin(), one.end());
      }
      return reference::bits(all);
    };
    const auto fails = [&](const char* what, const auto& call) {
      fail_in_turn(what, layer, *made.budget, call, decoded);
    };
    using Layer = Host::Layer;
    const std::string fresh = saved(layer);
    fails("the first step", [&](Layer& l) { l.step(query, rows.view(70), one); });
    fails("the first choice", [&](Layer& l) { l.choose_positions(std::vector<index_t>{5, 6}, rows.view(91)); });
    fails("observe", [&](Layer& l) { l.observe(queries, 80); });
    fails("prefill", [&](Layer& l) { l.prefill(queries, rows.view(40), out); });
    layer.observe(queries, 80);
    fails("prepare", [&](Layer& l) { l.prepare(rows.view(80)); });
    fails("the step behind a prompt", [&](Layer& l) { l.step(query, rows.view(81), one); });
    layer.step(query, rows.view(81), one);
    fails("a step", [&](Layer& l) { l.step(query, rows.view(82), one); });
    const std::vector<float> scores(2 * 82, 0.5F);
    fails("a choice by scores", [&](Layer& l) { l.choose_by_scores(scores, rows.view(82)); });
    fails("a second prompt", [&](Layer& l) { l.observe(query, 85); });
    fails("truncate", [&](Layer& l) { l.truncate(77); });
    fails("rollback", [&](Layer& l) { l.rollback(4); });
    fails("clear", [&](Layer& l) { l.clear(); });
    fails("recycled_positions", [&](Layer& l) { static_cast<void>(l.recycled_positions(0)); });
    fails("save", [&](Layer& l) { static_cast<void>(saved(l)); });
    fails("share", [](Layer& l) { l.share(std::make_shared<Scratch>()); });
    fails("load", [&](Layer& l) { load(l, fresh); });
    const Layer other(shape, made.options, made.schedule, made.selection);
    fails("assignment", [&](Layer& l) { l = other; });
  }
  EXPECT_GT(failed, 500);
  stress::report("allocations failed, layer over pages", std::to_string(failed) + " in " + std::to_string(called) +
                                                             " calls, state unchanged, 0 leaks, next call works");
}

/// Constructors, and what else makes something: nothing is left of what could not be made.
template <class Make>
long fail_to_make(const char* what, const Make& make) {
  SCOPED_TRACE(what);
  make();  // what a first call leaves for good, such as a locale's facets
  for (long n = 1;; ++n) {
    const long live = reference::live;
    bool throws = false, happened = false;
    try {
      const Failing failing(n);
      make();
      happened = Failing::happened();
    } catch (const std::bad_alloc&) {
      throws = true;
    }
    EXPECT_EQ(reference::live, live) << "allocation " << n;
    if (!throws && !happened) return n - 1;
  }
}

TEST(FailedAllocation, LeavesNothingOfWhatCouldNotBeMade) {
  long all = 0;
  for (Made& made : every_kind()) {
    made.options.max_length = 50;
    all += fail_to_make("Decoder", [&] { Host host({2, shape}, made.options, made.schedule, made.selection); });
    all +=
        fail_to_make("LayerAttention", [&] { Host::Layer layer(shape, made.options, made.schedule, made.selection); });
    const Host host({2, shape}, made.options, made.schedule, made.selection);
    all += fail_to_make("a copy of a decoder", [&] { const Host copy = host; });
    all += fail_to_make("a copy of a layer", [&] { const Host::Layer copy = host.layer(1); });
  }
  all += fail_to_make("ThreadPool", [] { ThreadPool pool(3); });
  all += fail_to_make("Budget", [] { std::make_shared<Budget>(0.5F); });
  all += fail_to_make("KvCache", [] { KvCache<half> cache(shape, 40); });
  all += fail_to_make("Array", [] { Array<float>(3, 1.0F); });
  EXPECT_GT(all, 100);
  stress::report("allocations failed, constructors", std::to_string(all) + ", 0 leaks");
}

}  // namespace
