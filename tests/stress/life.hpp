// Random lives of layers, to be lived again under other circumstances.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <sstream>

#include "compiled/layers.hpp"
#include "reference/feed.hpp"
#include "stress/effort.hpp"

namespace stress {

using namespace recycled;
using reference::at, reference::Bits, reference::Random;

template <class N>
N any_of(Random& random, std::initializer_list<N> values) {
  return values.begin()[random.between(0, static_cast<index_t>(values.size()) - 1)];
}

/// What came of a life.
struct Outcome {
  std::vector<std::vector<float>> outputs = {};  // of every call
  std::vector<std::vector<index_t>> held = {};   // behind every step, of every KV head
  std::vector<StepKind> kinds = {};              // the same

  std::string state = {};  // what it saves in the end

  bool same_outputs(const Outcome& other) const {
    return std::equal(outputs.begin(), outputs.end(), other.outputs.begin(), other.outputs.end(),
                      [](const auto& a, const auto& b) { return reference::bits(a) == reference::bits(b); });
  }
  friend bool operator==(const Outcome& a, const Outcome& b) {
    return a.held == b.held && a.kinds == b.kinds && a.same_outputs(b) && a.state == b.state;
  }
};

/// A layer, the rows that it reads, a prompt or none, and steps with rollbacks and choices of the host's in between.
template <Scalar T, Scalar R = T>
class Life {
 public:
  using Layer = reference::AnyLayer<T>;
  using Cache = reference::Cache<T>;
  enum class Start { steps, prefill, observe };

  Shape shape;
  LayerOptions options;
  reference::AnySchedule schedule;
  TopK selection;
  Start start;
  index_t prompt, length;           // positions before the first step, and in the end
  std::vector<index_t> heads = {};  // which of the queries' KV heads stands in for each; empty: itself

  /// Of at most about so many positions.
  explicit Life(Random& random, index_t positions = 200) : shape(any_shape(random)) {
    prompt = random.between(1, any_of<index_t>(random, {2, 40, positions, positions}));
    length = prompt + random.between(4, 14);
    options = {.capacity = random.between(1, prompt + 4), .attention = any_attention(random)};
    if (random.between(0, 1) == 0) options.max_length = length;
    switch (random.between(0, 3)) {
      case 0:
      case 1:
        options.sketch = {.coordinates = 4 * random.between(1, 8), .full_every = random.between(2, 9)};
        break;
      case 2:
        options.sketch = {.keys = true};
        break;
      default:
        break;
    }
    selection = {.memory = any_of(random, {0.0F, 0.0F, 0.6F}),
                 .pool = any_of<index_t>(random, {1, 1, 7}),
                 .observation_window = any_of<index_t>(random, {1, 1, 5})};
    schedule = any_schedule(random);
    start = any_of(random, {Start::steps, Start::prefill, Start::observe, Start::observe});
    observed_ = std::min(prompt, any_of<index_t>(random, {1, 9, 64}));
    std::vector<float> query = random.row(shape.query_size());
    const float drift = any_of(random, {0.1F, 0.4F, 1.0F});
    for (index_t i = 0; i < length; ++i) {
      for (float& x : query) x = std::sqrt(1 - drift * drift) * x + drift * random.normal();
      queries_.push_back(query);
    }
    for (index_t i = prompt; i < length; ++i) turns_.push_back(random.between(0, 9));
  }
  Cache cache(Random& random, const reference::Layout& layout = {}) const {
    return Cache::random(shape, length, random, layout);
  }
  static reference::Layout any_layout(Random& random) {
    return {.position_major = random.between(0, 1) == 0,
            .padding = any_of<index_t>(random, {0, 0, 1, 7}),
            .offset = any_of<index_t>(random, {0, 1, 3}),
            .room = random.between(0, 3),
            .page = any_of<index_t>(random, {0, 0, 1, 16, 33}),
            .value_offset = any_of<index_t>(random, {0, 1, 5}),
            .between = reference::every_poison[random.between(0, 5)]};
  }
  static reference::AnySchedule any_schedule(Random& random) {
    const index_t longest = any_of<index_t>(random, {3, 9});
    switch (random.between(0, 8)) {
      case 0:
        return {NeverFull{}};
      case 1:
        return {AlwaysFull{}, true};
      case 2:
        return {QuerySimilarity{random.between(1, 3), 0.8F}, true};
      case 3:
        return {QuerySimilarity{random.between(1, 3), 0.8F}};
      case 4:
        return {SelfCalibrating{.longest = longest}};
      case 5:
        return {Budgeted{std::make_shared<Budget>(0.3F), longest}};
      default:
        return {FixedStride{random.between(2, 5)}};
    }
  }
  /// Whether any KV head may stand in any other's place: what a schedule or a sketch does for head 1 may come some
  /// tokens later than for head 0.
  bool heads_are_alike() const {
    const auto* calibrating = std::get_if<SelfCalibrating>(&schedule.one);
    const auto* budgeted = std::get_if<Budgeted>(&schedule.one);
    if ((calibrating != nullptr && calibrating->longest > 3) || (budgeted != nullptr && budgeted->longest > 3))
      return false;
    if (schedule.as_itself) return false;  // the mean of their queries depends on their order
    return options.sketch.coordinates == 0 || options.attention.window > 0 ||
           (start == Start::observe && observed_ == 64);
  }

  /// Lives over `rows`, which `before(rows, layer, length)` may change ahead of what reads so many positions. The
  /// queries and outputs of all calls lie `offset` floats into their memory.
  template <class Before>
  Outcome live(Cache rows, ThreadPool& pool, const Before& before, index_t offset = 0) const {
    const reference::AnySchedule own_one = own_schedule();
    const auto make = [&] { return reference::make_layer<T, R>(shape, options, own_one, selection); };
    std::unique_ptr<Layer> layer = make();
    Outcome outcome;
    outcome.outputs.reserve(queries_.size());
    if (start == Start::observe) layer->observe(asked(prompt - observed_, observed_, 0), prompt);
    if (start == Start::prefill) {
      for (index_t begin = 0, end = prompt / 3; begin < prompt; begin = end, end = prompt) {
        if (begin == end) continue;
        before(rows, *layer, end);
        call(outcome, end - begin, offset, [&](std::span<float> out) {
          const std::vector<float> queries = asked(begin, end - begin, offset);
          layer->prefill(std::span(queries).subspan(at(offset)), rows.view(end), out, pool);
        });
      }
    }
    for (index_t i = 0, end = prompt + 1; end <= length; ++i, ++end) {
      const index_t turn = turns_[at(i % (length - prompt))];
      if (turn == 0 && !steady && i < length - prompt && layer->length() > 2) {
        layer->rollback(2);
        end = layer->length() + 1;
      }
      if (turn > 7 && saved) {
        std::stringstream state;
        layer->save(state);
        layer = make();
        layer->load(state);
      }
      before(rows, *layer, end);
      if (turn == 1 && choices && !steady) layer->choose_positions(choice(end - 1), rows.view(end), pool);
      call(outcome, 1, offset, [&](std::span<float> out) {
        const std::vector<float> own = asked(prompt + i % (length - prompt), 1, offset);
        layer->step(std::span(own).subspan(at(offset)), rows.view(end), out, pool);
      });
      for (index_t g = 0; g < shape.kv_heads; ++g) {
        outcome.held.push_back(layer->recycled_positions(g));
        outcome.kinds.push_back(layer->last_step(g));
      }
    }
    std::ostringstream stream;
    layer->save(stream);
    outcome.state = std::move(stream).str();
    return outcome;
  }
  Outcome live(const Cache& rows, ThreadPool& pool, index_t offset = 0) const {
    return live(
        rows, pool, [](const auto&...) {}, offset);
  }
  bool choices = true;  ///< the host makes some, now and then,
  bool steady = false;  ///< and nothing at all happens between steps,
  bool saved = false;   ///< but that it is saved, now and then, and a new layer goes on from there

 private:
  static Shape any_shape(Random& random) {
    const auto dim = [&] {
      const index_t any = any_of<index_t>(random, {random.between(1, 20), random.between(1, 80), 46, 64, 128});
      return (any + values_per_element<T> - 1) / values_per_element<T> * values_per_element<T>;
    };
    const index_t kv_heads = random.between(1, 5);
    Shape shape{kv_heads * any_of<index_t>(random, {1, 2, 3, 4, 11}), kv_heads, dim()};
    shape.value_dim = random.between(0, 3) == 0 ? dim() : shape.head_dim;
    return shape;
  }
  static AttentionOptions any_attention(Random& random) {
    AttentionOptions options;
    if (random.between(0, 3) == 0) options.soft_cap = any_of(random, {1.0F, 30.0F});
    if (random.between(0, 2) == 0) {
      options.window = random.between(1, 90);
      options.sinks = random.between(0, 5);
    }
    return options;
  }
  /// A budget of its own for every life.
  reference::AnySchedule own_schedule() const {
    reference::AnySchedule own = schedule;
    if (auto* budgeted = std::get_if<Budgeted>(&own.one))
      budgeted->budget = std::make_shared<Budget>(budgeted->budget->share());
    return own;
  }

  template <class F>
  void call(Outcome& outcome, index_t tokens, index_t offset, const F& f) const {
    std::vector<float> out(at(offset + tokens * shape.query_heads * value_dim()));
    f(std::span(out).subspan(at(offset)));
    out.erase(out.begin(), out.begin() + offset);
    outcome.outputs.push_back(std::move(out));
  }
  index_t value_dim() const { return shape.value_dim; }
  /// The queries of some tokens, behind so many floats of nothing.
  std::vector<float> asked(index_t first, index_t tokens, index_t offset) const {
    std::vector<float> all(at(offset), std::nanf(""));
    const index_t size = shape.group() * shape.head_dim;
    for (index_t t = first; t < first + tokens; ++t) {
      for (index_t g = 0; g < shape.kv_heads; ++g) {
        const float* const from = queries_[at(t)].data() + (heads.empty() ? g : heads[at(g)]) * size;
        all.insert(all.end(), from, from + size);
      }
    }
    return all;
  }
  /// Some positions below `own`, the same for all heads.
  std::vector<index_t> choice(index_t own) const {
    std::vector<index_t> one, all;
    for (index_t p = own - 1; p >= 0 && static_cast<index_t>(one.size()) < std::min(options.capacity, index_t{7});
         p -= 3)
      one.push_back(p);
    for (index_t g = 0; g < shape.kv_heads; ++g) all.insert(all.end(), one.begin(), one.end());
    return all;
  }

  index_t observed_ = 1;
  std::vector<std::vector<float>> queries_;  // of the prompt's tokens, then of the steps
  std::vector<index_t> turns_;               // what else happens before a step
};

/// Calls f(random) until `wanted` cases have been counted, from a seed of its own each time; returns how often.
template <class F>
long cases(long wanted, const F& f) {
  long done = 0;
  for (; done < wanted && !testing::Test::HasFailure(); ++done) {
    const std::uint64_t seed = stress::seed() * 1000003 + static_cast<std::uint64_t>(done);
    SCOPED_TRACE("seed " + std::to_string(seed));
    Random random(seed);
    f(random);
  }
  return done;
}

}  // namespace stress
