// Decodes the last tokens of a trace again, once for each policy: what does it read, how far is it off, how long does
// it take? Every token's query, key and value are the trace's own, whatever a policy made of the tokens before.
#pragma once

#include <algorithm>
#include <chrono>
#include <functional>
#include <recycled/recycled.hpp>

#include "results.hpp"
#include "trace.hpp"
#include "truth.hpp"

namespace replay {

/// Called with (work done, work in all).
using Progress = std::function<void(index_t, index_t)>;

template <class T, class R, class Schedules>
struct LayersOf;
/// A layer with one of these schedules, or a baseline.
template <class T, class R, class... S>
struct LayersOf<T, R, std::variant<S...>> {
  using type = std::variant<recycled::LayerAttention<T, S, recycled::TopK, R>...,
                            recycled::LayerAttention<T, recycled::NeverFull, examples::AnySelection, R>>;
};

/// Keys and values are of type T, and recycled as R.
template <recycled::Scalar T, recycled::Scalar R>
class Replay {
 public:
  /// Throws std::invalid_argument for options that don't fit the trace, and for values that don't fit T or R.
  Replay(const Trace& trace, const Options& options)
      : trace_(trace),
        options_(checked(options, trace)),
        pool_(options_.threads),
        keys_(stored(trace.keys, "keys")),
        values_(stored(trace.values, "values")),
        out_(static_cast<std::size_t>(trace.shape.output_size())) {
    options_.schedules.insert(options_.schedules.begin(), Policy{{"full", recycled::AlwaysFull{}}});
  }

  /// One result a schedule; before them, as the first, full attention: the truth, and what times are compared with.
  std::vector<Result> run(const Progress& progress) {
    const index_t work = (1 + options_.rounds) * options_.tokens;
    index_t done = 0;
    const auto advance = [&] {
      if (progress) progress(++done, work);
    };
    std::vector<Result> results = measure(advance);
    take_times(results, advance);
    return results;
  }

 private:
  using Full = recycled::LayerAttention<T, recycled::AlwaysFull, recycled::TopK, R>;
  using Layer = typename LayersOf<T, R, AnySchedule>::type;
  using Sets = std::vector<std::vector<index_t>>;  // for each KV head the positions held

  static Options checked(Options options, const Trace& trace) {
    const auto check = [](bool ok, std::string_view name, index_t value, const std::string& expectation) {
      if (!ok) {
        throw std::invalid_argument(std::string(name) + " = " + std::to_string(value) + ", expected " + expectation);
      }
    };
    const index_t least = std::max(trace.first_query + 1, index_t{1});
    check(options.prompt >= least && options.prompt < trace.tokens, "prompt", options.prompt,
          std::to_string(least) + " to " + std::to_string(trace.tokens - 1) +
              ": the trace has queries from the prompt's last token on, and tokens to decode");
    const index_t rest = trace.tokens - options.prompt;
    if (options.tokens == 0) options.tokens = rest;
    check(options.tokens >= 1 && options.tokens <= rest, "tokens", options.tokens,
          "1 to " + std::to_string(rest) + ", what the trace has after the prompt");
    check(options.rounds >= 1, "rounds", options.rounds, "at least 1");
    return options;
  }

  /// Rows as the KV type stores them, aligned as the library aligns its own.
  static recycled::Array<T> stored(const std::vector<float>& rows, std::string_view name) {
    const auto size = static_cast<index_t>(rows.size());
    check_held<T>(rows, name);
    if constexpr (!std::same_as<T, R>) check_held<R>(rows, name);
    recycled::Array<T> result(size / recycled::values_per_element<T>);
    recycled::encode(rows.data(), size, result.data());
    return result;
  }
  recycled::KvView<T> view(index_t length) const {
    return recycled::KvView<T>::position_major(keys_.data(), values_.data(), trace_.shape, length);
  }

  /// New layers that have seen the prompt and chosen by its last tokens.
  std::vector<Layer> begin() const {
    std::vector<Layer> layers;
    for (const Policy& policy : options_.schedules) {
      layers.push_back(policy.baseline
                           ? begin(policy, recycled::NeverFull{}, policy.baseline(capacity(policy), options_.tokens))
                           : std::visit([&](const auto& s) { return begin(policy, s, policy.selection()); },
                                        examples::fresh(policy.schedule)));
    }
    return layers;
  }
  template <recycled::Schedule S, recycled::Selection Keep>
  Layer begin(const Policy& policy, const S& schedule, const Keep& selection) const {
    recycled::LayerAttention<T, S, Keep, R> layer(
        trace_.shape, {.capacity = capacity(policy), .max_length = trace_.tokens, .sketch = policy.sketch()}, schedule,
        selection);
    // As many of the prompt's last queries as the trace has, up to what a sketch or the selection makes use of.
    const index_t wanted = std::max(policy.observation_window, index_t{64});
    const index_t first = std::max(trace_.first_query, options_.prompt - std::min(options_.prompt, wanted));
    layer.observe(trace_.queries_of(first, options_.prompt), options_.prompt);
    layer.prepare(view(options_.prompt), pool_);
    return layer;
  }
  index_t capacity(const Policy& policy) const { return policy.capacity > 0 ? policy.capacity : options_.capacity; }

  /// What each KV head holds for the next step.
  template <class L>
  Sets sets(const L& layer) const {
    Sets held;
    for (index_t g = 0; g < trace_.shape.kv_heads; ++g) held.push_back(layer.recycled_positions(g));
    return held;
  }

  /// The `number`-th decode step (from 1 on) of one layer, into out_.
  void step(Layer& layer, index_t number) {
    const index_t length = options_.prompt + number;
    std::visit([&](auto& l) { l.step(trace_.query(length - 1), view(length), out_, pool_); }, layer);
  }

  /// Everything but times, all policies side by side.
  template <class Advance>
  std::vector<Result> measure(const Advance& advance) {
    Truth truth(trace_.shape, view(trace_.tokens));
    std::vector<Layer> layers = begin();
    std::vector<Sets> held;
    held.reserve(layers.size());
    for (const Layer& layer : layers) held.push_back(std::visit([&](const auto& l) { return sets(l); }, layer));
    std::vector<Result> results(layers.size());
    std::vector<float> exact;
    for (index_t number = 1; number <= options_.tokens; ++number) {
      const index_t length = options_.prompt + number;
      truth.attend(trace_.query(length - 1), length);
      for (std::size_t i = 0; i < layers.size(); ++i) {
        step(layers[i], number);
        if (i == 0) exact = out_;
        std::visit([&](const auto& layer) { note(layer, truth, exact, held[i], results[i]); }, layers[i]);
      }
      advance();
    }
    for (std::size_t i = 0; i < layers.size(); ++i) {
      results[i].policy = options_.schedules[i].name;
      const auto full_bytes = static_cast<double>(std::get<Full>(layers[0]).statistics().total().bytes_read);
      std::visit([&](const auto& layer) { summarize(layer, full_bytes, results[i]); }, layers[i]);
    }
    return results;
  }

  /// What the step that `layer` just took means; `held`: what it held before.
  template <class L>
  void note(const L& layer, const Truth& truth, const std::vector<float>& exact, Sets& held, Result& result) const {
    Step step{0, relative_error(out_, exact, trace_.shape.query_heads)};
    for (index_t g = 0; g < trace_.shape.kv_heads; ++g) {
      const recycled::StepKind kind = layer.last_step(g);
      std::vector<index_t>& rows = held[static_cast<std::size_t>(g)];
      if (kind == recycled::StepKind::full) {
        ++step.full_heads;
        result.covered += static_cast<double>(trace_.shape.group());
      } else if (kind == recycled::StepKind::sketched) {  // attended to what it chose, the new token included
        result.covered += truth.covered(g, layer.recycled_positions(g));
      } else {
        rows.push_back(layer.length() - 1);
        result.covered += truth.covered(g, rows);
      }
    }
    held = sets(layer);
    result.error += step.error;
    result.steps.push_back(step);
  }

  template <class L>
  void summarize(const L& layer, double full_bytes, Result& result) const {
    const recycled::HeadStatistics total = layer.statistics().total();
    result.full_steps = static_cast<index_t>(total.full_steps);
    result.sketched_steps = static_cast<index_t>(total.sketched_steps);
    result.rows = static_cast<index_t>(total.rows_read);
    result.bytes_share = static_cast<double>(total.bytes_read) / full_bytes;
    result.error /= static_cast<double>(options_.tokens);
    result.covered /= static_cast<double>(options_.tokens * trace_.shape.query_heads);
  }

  /// The policies take each step in turn, each round from another one on: what slows the machine down for a while then
  /// hits all of them, and each finds the caches as the others leave them. The median of the rounds stands for the
  /// step, and the mean over the steps for a token; a median there would leave out the few full steps, which are what
  /// costs.
  template <class Advance>
  void take_times(std::vector<Result>& results, const Advance& advance) {
    using Clock = std::chrono::steady_clock;
    const auto rounds = static_cast<std::size_t>(options_.rounds);
    const auto tokens = static_cast<std::size_t>(options_.tokens);
    std::vector<double> times(results.size() * tokens * rounds);
    for (std::size_t round = 0; round < rounds; ++round) {
      std::vector<Layer> layers = begin();
      for (std::size_t t = 0; t < tokens; ++t) {
        for (std::size_t n = 0; n < layers.size(); ++n) {
          const std::size_t i = (n + round) % layers.size();
          const auto start = Clock::now();
          step(layers[i], static_cast<index_t>(t) + 1);
          const std::chrono::duration<double, std::micro> time = Clock::now() - start;
          times[(i * tokens + t) * rounds + round] = time.count();
        }
        advance();
      }
    }
    for (std::size_t i = 0; i < results.size(); ++i) {
      for (std::size_t t = 0; t < tokens; ++t) {
        const auto first = times.begin() + static_cast<std::ptrdiff_t>((i * tokens + t) * rounds);
        const auto middle = first + static_cast<std::ptrdiff_t>(rounds / 2);
        std::nth_element(first, middle, first + static_cast<std::ptrdiff_t>(rounds));
        results[i].steps[t].microseconds = *middle;
        results[i].microseconds += *middle / static_cast<double>(tokens);
      }
    }
  }

  const Trace& trace_;
  Options options_;
  mutable recycled::ThreadPool pool_;
  recycled::Array<T> keys_;    // [token, kv_head, head_dim]
  recycled::Array<T> values_;  // [token, kv_head, value_dim]
  std::vector<float> out_;
};

/// Replays `trace` with keys and values rounded to T, and to R as they are recycled. The first result is that of full
/// attention, named "full".
template <recycled::Scalar T, recycled::Scalar R = T>
std::vector<Result> run(const Trace& trace, const Options& options, const Progress& progress = {}) {
  return Replay<T, R>(trace, options).run(progress);
}

}  // namespace replay
