// Queries that are no numbers, infinite, huge or zero, under every schedule: what they spoil is their own step, and the
// next choice is made anew.
#include "stress/life.hpp"

namespace {

using namespace recycled;
using reference::AnySchedule, reference::at, reference::Random;

constexpr index_t kv_heads = 5, group = 3, prompt = 90, capacity = 12, before = 5, behind = 12;
constexpr float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
constexpr index_t odd_head = 1;  // the KV head that it happens to, in its second query head

struct Odd {
  const char* name;
  float first, others;  // of the query head's coordinates; 1 leaves them as they are
  bool finite_outputs;  // the step itself has some
};
constexpr Odd odds[] = {{"a NaN", nan, 1, false},        {"NaNs", nan, nan, false},
                        {"infinity", inf, 1, false},     {"-infinity", -inf, 1, true},
                        {"infinities", inf, inf, false}, {"huge", 3e38F, 1, true},
                        {"-huge", -3e38F, 1, true},      {"zeros", 0, 0, true}};

struct Scheduled {
  const char* name;
  AnySchedule schedule;
  bool compares;  // whether it looks at the query at every step
  bool refreshes = true;

  template <class One>
  bool is() const {
    return std::holds_alternative<One>(schedule.one);
  }
  /// What one head sees decides for others, too.
  bool is_coupled() const { return is<Budgeted>() || (is<QuerySimilarity>() && schedule.as_itself); }
  bool keeps_sets() const { return !is<AlwaysFull>() || !schedule.as_itself; }
};
std::vector<Scheduled> schedules() {
  return {{"fixed-stride", {FixedStride{3}}, false},
          {"query-similarity", {QuerySimilarity{3, 0.5F}}, false},
          {"query-similarity at every step", {QuerySimilarity{1, 0.5F}}, true},
          {"self-calibrating", {SelfCalibrating{}}, true},
          {"budgeted", {Budgeted{std::make_shared<Budget>(0.5F)}}, true},
          {"query-similarity of the layer", {QuerySimilarity{1, 0.5F}, true}, true},
          {"never-full", {NeverFull{}}, false, false},
          {"always-full, asked", {AlwaysFull{}}, true},
          {"always-full", {AlwaysFull{}, true}, true}};
}

/// Rows whose keys agree about the sign of their first coordinate: an infinite query makes all logits infinite.
template <Scalar T>
reference::Cache<T> some_rows(const Shape& shape, Random& random) {
  auto rows = reference::Cache<T>::random(shape, prompt + before + behind + 1, random);
  for (index_t g = 0; g < kv_heads; ++g) {
    for (index_t p = 0; p < rows.length(); ++p) {
      std::vector<float> key = random.row(shape.head_dim);
      key[0] = 0.5F + std::abs(key[0]);
      rows.set_key(p, g, key);
    }
  }
  return rows;
}

/// Where the odd query comes: in the prompt's last token, or at the last of `before` steps; which of these are
/// refreshes depends on `before`.
enum class Place { in_prompt, at_step };

constexpr index_t dim = 32;
constexpr Shape shape{kv_heads * group, kv_heads, dim, dim};

/// What all cases of a type read.
template <Scalar T>
struct Given {
  Random random{7};
  reference::Cache<T> rows = some_rows<T>(shape, random);
  std::vector<float> prompt_queries = random.row(64 * shape.query_size());
  std::vector<std::vector<float>> queries = random.rows(prompt, shape.query_size());
};

template <Scalar T, Scalar R = T>
class Case {
 public:
  Case(const Given<T>& given, const Scheduled& of, const Odd& odd, index_t coordinates, Place place, index_t late)
      : given_(given),
        of_(of),
        odd_(odd),
        place_(place),
        steps_before_(before + late),
        seen_(place == Place::in_prompt) {
    const LayerOptions options{.capacity = capacity, .sketch = {.coordinates = coordinates, .full_every = 6}};
    const TopK selection{.pool = 1};
    layer_ = reference::make_layer<T, R>(shape, options, own(of.schedule), selection);
    twin_ = reference::make_layer<T, R>(shape, options, own(of.schedule), selection);
    exact_ = reference::make_layer<T, R>(shape, {.capacity = capacity}, {AlwaysFull{}}, selection);
  }

  void run() {
    const std::vector<float>& sane = given_.prompt_queries;
    std::vector<float> queries = sane;
    if (place_ == Place::in_prompt) spoil(std::span(queries).last(at(shape.query_size())));
    layer_->observe(queries, prompt);
    for (auto* one : {&twin_, &exact_}) (*one)->observe(sane, prompt);
    query_.assign(sane.end() - shape.query_size(), sane.end());
    for (index_t i = 1; i < steps_before_; ++i) step(false);
    if (place_ == Place::at_step) step(true);
    if (testing::Test::HasFailure()) return;
    recover();
  }

 private:
  static AnySchedule own(AnySchedule schedule) {
    if (auto* budgeted = std::get_if<Budgeted>(&schedule.one)) budgeted->budget = std::make_shared<Budget>(0.5F);
    return schedule;
  }
  void spoil(std::span<float> query) const {
    const std::span<float> row = query.subspan(at((odd_head * group + 1) * dim), at(dim));
    row[0] = odd_.first;
    for (float& x : row.subspan(1)) x = odd_.others == 1 ? x : odd_.others;
  }
  std::vector<float> out_of(reference::AnyLayer<T>& layer, const std::vector<float>& query) {
    std::vector<float> out(at(shape.query_heads * dim));
    layer.step(query, given_.rows.view(std::max(layer.length(), prompt) + 1), out, pool_);
    return out;
  }
  static std::span<const float> of_head(const std::vector<float>& out, index_t g) {
    return std::span(out).subspan(at(g * group * dim), at(group * dim));
  }
  static bool same(std::span<const float> a, std::span<const float> b) {
    return std::equal(a.begin(), a.end(), b.begin(), b.end());
  }
  static bool finite(std::span<const float> values) {
    return std::all_of(values.begin(), values.end(), [](float x) { return std::isfinite(x); });
  }

  /// All layers take a step; the first one with the odd query, if it is time for that.
  void step(bool odd) {
    const std::vector<float>& turn = given_.queries[at(steps_++)];
    for (std::size_t i = 0; i < query_.size(); ++i) query_[i] = 0.9F * query_[i] + 0.43F * turn[i];
    std::vector<float> query = query_;
    if (odd) spoil(query);
    const std::vector<float> out = out_of(*layer_, query), sound = out_of(*twin_, query_);
    const std::vector<float> exact = out_of(*exact_, query_);
    last_ = layer_->last_step(odd_head);
    twins_ += seen_ && twin_->last_step(odd_head) != StepKind::full ? 1 : 0;
    for (index_t g = 0; g < kv_heads; ++g) {
      if (g == odd_head) continue;
      EXPECT_TRUE(finite(of_head(out, g)));
      const StepKind kind = layer_->last_step(g);
      const bool apart = of_.is_coupled() && (seen_ || odd);  // from the twin, in what is decided
      EXPECT_TRUE(apart || kind == twin_->last_step(g));
      if (kind == twin_->last_step(g) && (!apart || !seen_)) {
        EXPECT_TRUE(same(of_head(out, g), of_head(sound, g))) << "KV head " << g;
      } else if (kind == StepKind::full) {
        EXPECT_TRUE(same(of_head(out, g), of_head(exact, g))) << "KV head " << g;
      }
    }
    EXPECT_EQ(finite(of_head(out, odd_head)), !odd || odd_.finite_outputs);
    if (odd && of_.compares && !std::isfinite(odd_.first)) {
      EXPECT_EQ(last_, StepKind::full) << "can't be compared";
    }
    seen_ = seen_ || odd;
  }

  /// From the next step on all is well: it is full if the odd query had chosen, and chooses what a sound one does.
  void recover() {
    const bool chose = place_ == Place::in_prompt ? steps_before_ == 1 : last_ != StepKind::recycled;
    index_t refreshes = 0, others = 0;
    for (index_t i = 0; i < behind - steps_before_ + before - 2 && !testing::Test::HasFailure(); ++i) {
      step(false);
      if (i == 0 && chose && !std::isfinite(odd_.first)) {
        EXPECT_EQ(last_, StepKind::full) << "the choice was odd";
      }
      if (last_ == StepKind::full && of_.keeps_sets()) {
        EXPECT_EQ(layer_->recycled_positions(odd_head), exact_->recycled_positions(odd_head));
      }
      refreshes += i > 0 && last_ != StepKind::recycled ? 1 : 0;  // the first may be one whatever the schedule says
      others += last_ != StepKind::full ? 1 : 0;
    }
    if (of_.refreshes) {
      EXPECT_GT(refreshes, 0) << "never again";
    }
    if (!of_.is<AlwaysFull>()) {
      EXPECT_TRUE(others > 0 || twins_ == 0) << "full for ever";
    }
    EXPECT_EQ(layer_->recycled_positions(odd_head).size(), at(of_.keeps_sets() ? capacity : 0));
    const HeadStatistics total = layer_->statistics().total();
    EXPECT_TRUE(std::isfinite(total.retained_mass) && std::isfinite(total.sketched_mass));
    const AnySchedule schedule = layer_->schedule();
    schedule.validate();
    if (const auto* budgeted = std::get_if<Budgeted>(&schedule.one)) {
      EXPECT_TRUE(std::isfinite(budgeted->budget->allowed_loss()));
      for (const auto& head : budgeted->heads) EXPECT_TRUE(std::isfinite(head.loss) && std::isfinite(head.turn));
    }
  }

  const Given<T>& given_;
  const Scheduled& of_;
  const Odd& odd_;
  Place place_;
  index_t steps_before_;
  ThreadPool pool_{1};
  std::unique_ptr<reference::AnyLayer<T>> layer_, twin_, exact_;
  std::vector<float> query_;
  StepKind last_ = StepKind::full;
  bool seen_;
  index_t steps_ = 0;
  index_t twins_ = 0;  // steps that the sound one did not take as full ones
};

template <Scalar T, Scalar R = T>
long run(bool infinite) {
  long cases = 0;
  const Given<T> given;
  for (const Scheduled& of : schedules()) {
    for (const Odd& odd : odds) {
      if (std::isinf(odd.first) != infinite) continue;
      for (const index_t coordinates : {0, 8}) {
        for (const Place place : {Place::in_prompt, Place::at_step}) {
          for (const index_t late : {-4, 0, 1, 2}) {
            if (place == Place::in_prompt && late > -4) continue;
            SCOPED_TRACE(testing::Message() << of.name << ", " << odd.name << ", " << coordinates << " coordinates, "
                                            << (place == Place::in_prompt ? "in the prompt" : "at step ")
                                            << before + late << ", " << type_name<T>);
            Case<T, R>(given, of, odd, coordinates, place, late).run();
            ++cases;
          }
        }
      }
    }
  }
  return cases;
}

void run_types(const char* what, bool infinite) {
  const long cases = run<float>(infinite) + run<half>(infinite) + run<bfloat16>(infinite) + run<q8_0>(infinite) +
                     run<float, half>(infinite);
  stress::report(std::string("odd queries, ") + what,
                 std::to_string(cases) + " cases of schedule, type, sketch and place recover");
}

/// What the schedule compares in place of the query is odd, the query is not.
template <Scalar T>
long run_compared() {
  long cases = 0;
  const Given<T> given;
  ThreadPool pool(1);
  for (const Scheduled& of : schedules()) {
    for (const float odd : {nan, inf, -inf}) {
      for (const index_t coordinates : {0, 8}) {
        SCOPED_TRACE(testing::Message() << of.name << ", " << odd << ", " << coordinates << " coordinates");
        const auto layer = reference::make_layer<T>(
            shape, {.capacity = capacity, .sketch = {.coordinates = coordinates}}, of.schedule, {.pool = 1});
        layer->observe(given.prompt_queries, prompt);
        const std::vector<float>& query = given.queries[0];
        std::vector<float> out(query.size()), spoilt = query;
        spoilt[at((odd_head * group + 1) * dim)] = odd;
        index_t recycled = 0;
        for (index_t i = 1; i <= behind; ++i) {
          layer->step(query, given.rows.view(prompt + i), out, pool, i == 4 ? spoilt : query);
          EXPECT_TRUE(std::all_of(out.begin(), out.end(), [](float x) { return std::isfinite(x); })) << "step " << i;
          if (i == 4 && of.compares) {
            EXPECT_NE(layer->last_step(odd_head), StepKind::recycled);
          }
          recycled += i > 5 && layer->last_step(odd_head) == StepKind::recycled ? 1 : 0;
        }
        EXPECT_EQ(recycled > 0, !of.is<AlwaysFull>()) << "refreshes for ever";
        ++cases;
      }
    }
  }
  return cases;
}

TEST(OddQuery, ThatIsOnlyComparedMakesARefreshAndNothingElse) {
  stress::report("odd queries, compared", std::to_string(run_compared<float>() + run_compared<q8_0>()) +
                                              " cases of schedule, type and sketch recover");
}
TEST(OddQuery, ThatIsNoNumberHugeOrZeroSpoilsItsOwnStepAndNoScheduleForEver) { run_types("NaN, huge, zero", false); }
TEST(OddQuery, ThatIsInfiniteMakesTheNextStepFullWhateverItsLogitsAre) { run_types("infinite", true); }

}  // namespace
