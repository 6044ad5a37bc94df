// Schedules that are chosen at run time, by name, and baselines, which never refresh and have a selection of their own.
#pragma once

#include <algorithm>
#include <charconv>
#include <memory>
#include <optional>
#include <recycled/recycled.hpp>
#include <stdexcept>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "selections.hpp"

namespace examples {

/// A new schedule takes a place here and a line in parse_schedule.
using AnySchedule = std::variant<recycled::AlwaysFull, recycled::NeverFull, recycled::FixedStride,
                                 recycled::QuerySimilarity, recycled::SelfCalibrating, recycled::Budgeted>;

/// A copy that shares nothing with the schedule: what one run spends of a budget is not for the next one to make up.
inline AnySchedule fresh(AnySchedule schedule) {
  if (auto* const budgeted = std::get_if<recycled::Budgeted>(&schedule))
    budgeted->budget = std::make_shared<recycled::Budget>(budgeted->budget->share());
  return schedule;
}

struct NamedSchedule {
  std::string name;  ///< as the user wrote it
  AnySchedule schedule;
  bool sketched = false;           ///< its refreshes read a sketch of the keys,
  bool by_keys = false;            ///< or the keys alone
  index_t observation_window = 1;  ///< prompt queries that choose the first set
  Baseline baseline = {};          ///< makes the selection in place of selection(), if there is one

  /// How many of the prompt's last tokens are of use: a sketch learns from 64 what queries are like.
  index_t prompt_queries() const { return std::max(observation_window, index_t{sketched ? 64 : 1}); }
  /// For LayerAttention: 32 coordinates are a sixteenth of what a row of 128 halves takes, an eighth of one of 64.
  recycled::SketchOptions sketch() const { return {.coordinates = sketched ? 32 : 0, .keys = by_keys}; }
  /// A sketch's scores are noise to a pool: it would spread what is high by chance.
  recycled::TopK selection() const { return {.pool = sketched ? 1 : 7, .observation_window = observation_window}; }
};

inline constexpr std::string_view known_schedules =
    "always, never, fixed-stride:STRIDE, query-similarity:STRIDE:THRESHOLD, self-calibrating, self-calibrating:LATE, "
    "budgeted:SHARE; all but the first two also with :sketch or :keys at their end; never refreshed: snapkv, "
    "snapkv:WINDOW, sliding-window, streaming-llm, h2o, h2o:WINDOW, keyformer, keyformer:WINDOW";

inline std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::size_t begin = 0;
  for (std::size_t end = 0; end != std::string::npos; begin = end + 1) {
    end = text.find(separator, begin);
    parts.push_back(text.substr(begin, end - begin));
  }
  return parts;
}

/// The number that `text` is, to the last character. Throws std::invalid_argument that names `what`.
template <class Number>
Number parse_number(const std::string& what, const std::string& text) {
  Number number{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc{} || end != text.data() + text.size()) {
    throw std::invalid_argument(what + " = " + text +
                                (std::is_integral_v<Number> ? ", expected a whole number" : ", expected a number"));
  }
  return number;
}

/// A baseline by its name and, behind that, the last prompt queries that count; none if that is no baseline's name.
/// Throws std::invalid_argument for a number that can't be.
inline std::optional<NamedSchedule> parse_baseline(const std::string& text, const std::vector<std::string>& parts) {
  constexpr index_t usual = 32;
  const std::string& name = parts[0];
  const bool goes_by_scores = name == "snapkv" || name == "h2o" || name == "keyformer";
  if (parts.size() > (goes_by_scores ? 2U : 1U)) return {};
  NamedSchedule named{text, recycled::NeverFull{}};
  if (goes_by_scores) named.observation_window = parts.size() > 1 ? parse_number<index_t>("window", parts[1]) : usual;
  if (name == "sliding-window") named.baseline = sliding_window();
  if (name == "streaming-llm") named.baseline = streaming_llm();
  if (name == "h2o") named.baseline = heavy_hitters(named.observation_window);
  if (name == "keyformer") named.baseline = keyformer(named.observation_window);
  if (!named.baseline && name != "snapkv") return {};
  named.baseline ? named.baseline(1, 1).validate() : named.selection().validate();
  return named;
}

/// "fixed-stride:10" and the like. Throws std::invalid_argument for a name or a parameter that can't be; `option` is
/// where the text stood.
inline NamedSchedule parse_schedule(const std::string& option, const std::string& text) {
  std::vector<std::string> parts = split(text, ':');
  const bool sketched = parts.size() > 1 && parts.back() == "sketch";
  const bool by_keys = parts.size() > 1 && parts.back() == "keys";
  if (sketched || by_keys) parts.pop_back();
  const auto is = [&](std::string_view name, std::size_t parameters) {
    return parts[0] == name && parts.size() == 1 + parameters;
  };
  const auto stride = [&] { return parse_number<index_t>("stride", parts[1]); };
  const auto checked = [&](auto schedule) {
    schedule.validate();
    return NamedSchedule{text, std::move(schedule), sketched, by_keys};
  };
  try {
    const bool refreshes_fully = !sketched && !by_keys;
    if (is("always", 0) && refreshes_fully) return {text, recycled::AlwaysFull{}};
    if (is("never", 0) && refreshes_fully) return {text, recycled::NeverFull{}};
    if (const auto named = refreshes_fully ? parse_baseline(text, parts) : std::nullopt) return *named;
    if (is("self-calibrating", 0)) return checked(recycled::SelfCalibrating{});
    if (is("self-calibrating", 1)) {
      return checked(recycled::SelfCalibrating{.late = parse_number<float>("late", parts[1])});
    }
    if (is("budgeted", 1)) {
      return checked(recycled::Budgeted{std::make_shared<recycled::Budget>(parse_number<float>("share", parts[1]))});
    }
    if (is("fixed-stride", 1)) return checked(recycled::FixedStride{stride()});
    if (is("query-similarity", 2)) {
      return checked(recycled::QuerySimilarity{stride(), parse_number<float>("threshold", parts[2])});
    }
  } catch (const std::invalid_argument& error) {
    throw std::invalid_argument(option + " = " + text + ": " + error.what());
  }
  throw std::invalid_argument(option + " = " + text + ", expected one of " + std::string(known_schedules));
}

}  // namespace examples
