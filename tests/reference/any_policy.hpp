// Schedules and selections that are chosen at run time: layers of one type, compiled once, follow any of them.
#pragma once

#include <recycled/recycled.hpp>
#include <utility>
#include <variant>

namespace reference {

using recycled::index_t;

/// Asked about every KV head, whichever it is; or not at all, where make_layer() is told to take it `as_itself`.
struct AnySchedule {
  using One = std::variant<recycled::AlwaysFull, recycled::NeverFull, recycled::FixedStride, recycled::QuerySimilarity,
                           recycled::SelfCalibrating, recycled::Budgeted>;
  static constexpr bool per_head = true;
  One one;
  bool as_itself = false;  // QuerySimilarity is asked about the whole layer then, AlwaysFull keeps no recycle caches

  recycled::StepKind decide(const recycled::StepInfo& info) {
    return std::visit([&](auto& schedule) { return schedule.decide(info); }, one);
  }
  void observe(const recycled::Refresh& refresh) {
    visit(
        [&](auto& schedule) requires requires { schedule.observe(refresh); } { schedule.observe(refresh); });
  }
  void spent(const recycled::Cost& cost) {
    visit(
        [&](auto& schedule) requires requires { schedule.spent(cost); } { schedule.spent(cost); });
  }
  void reserve(index_t kv_heads) {
    visit(
        [&](auto& schedule) requires requires { schedule.reserve(kv_heads); } { schedule.reserve(kv_heads); });
  }
  template <class Io>
  void transfer(Io& io) {
    visit(
        [&](auto& schedule) requires requires { schedule.transfer(io); } { schedule.transfer(io); });
  }
  void validate() const {
    std::visit([](const auto& schedule) { recycled::detail::validate(schedule); }, one);
  }

 private:
  /// Calls `f` with the schedule, if it can be.
  template <class F>
  void visit(const F& f) {
    std::visit(
        [&](auto& schedule) {
          if constexpr (requires { f(schedule); }) f(schedule);
        },
        one);
  }
};

/// Looks on at recycled steps, for the selections that do.
struct AnySelection {
  using One = std::variant<recycled::TopK, recycled::SlidingWindow, recycled::StreamingLlm, recycled::HeavyHitters,
                           recycled::Keyformer>;
  One one;
  index_t observation_window = std::visit([](const auto& s) { return recycled::detail::observation_window(s); }, one);

  void rank(const recycled::Scores& measured, std::span<float> ranks) {
    std::visit([&](auto& selection) { selection.rank(measured, ranks); }, one);
  }
  void attended(const recycled::Attended& seen, std::span<float> ranks) {
    visit(
        [&](auto& selection) requires requires { selection.attended(seen, ranks); } {
          selection.attended(seen, ranks);
        });
  }
  void reserve(index_t length) {
    visit(
        [&](auto& selection) requires requires { selection.reserve(length); } { selection.reserve(length); });
  }
  void truncate(index_t length) noexcept {
    visit(
        [&](auto& selection) requires requires { selection.truncate(length); } { selection.truncate(length); });
  }
  template <class Io>
  void transfer(Io& io) {
    visit(
        [&](auto& selection) requires requires { selection.transfer(io); } { selection.transfer(io); });
  }
  void validate() const {
    std::visit([](const auto& selection) { recycled::detail::validate(selection); }, one);
  }

 private:
  template <class F>
  void visit(const F& f) {
    std::visit(
        [&](auto& selection) {
          if constexpr (requires { f(selection); }) f(selection);
        },
        one);
  }
};

}  // namespace reference
