// A decoder through anything that may happen to a sequence, in any order, beside the naive model of its layers.
#include <gtest/gtest.h>

#include <sstream>

#include "reference/lockstep.hpp"
#include "stress/effort.hpp"

namespace {

using namespace recycled;
using reference::Random;

/// Operations on a lockstep of decoder and model, which compares after each of them.
template <Scalar T, Schedule Policy>
class Soak {
 public:
  /// `prompt` tokens come first.
  Soak(const reference::Options& options, const Policy& policy, const reference::Schedule& schedule, std::uint64_t seed,
       index_t prompt)
      : random_(seed), lockstep_(options, policy, schedule, seed), other_(lockstep_.decoder()), prompt_(prompt) {
    lockstep_.stops_where_close = true;
    if (prompt > 0) lockstep_.prefill(prompt);
  }

  bool is_close() const { return lockstep_.is_close(); }
  void operation() {
    auto& decoder = lockstep_.decoder();
    switch (random_.between(0, 19)) {
      case 0:
        return lockstep_.prefill(random_.between(1, 9));
      case 1:
        return lockstep_.rollback(random_.between(0, std::min(lockstep_.length(), index_t{6})));
      case 2:
        return lockstep_.rollback(random_.between(0, std::max(lockstep_.length() - prompt_, index_t{0})));
      case 3:
        decoder = decoder.fork();
        return;
      case 4: {  // onto one that was somewhere else
        other_ = decoder;
        std::swap(other_, decoder);
        return;
      }
      case 5: {
        std::stringstream state;
        decoder.save(state);
        other_.load(state);
        std::stringstream again;
        other_.save(again);
        ASSERT_TRUE(again.str() == state.str());
        std::swap(other_, decoder);
        return;
      }
      case 6: {  // what goes wrong changes nothing
        std::stringstream before, after;
        decoder.save(before);
        std::vector<float> nothing;
        EXPECT_THROW(decoder.step(random_.between(-1, 2), nothing, nothing, nothing, nothing), std::invalid_argument);
        EXPECT_THROW(decoder.rollback(decoder.length() + 1), std::invalid_argument);
        std::stringstream cut(before.str().substr(0, before.str().size() / 2));
        EXPECT_THROW(decoder.load(cut), std::invalid_argument);
        decoder.save(after);
        ASSERT_TRUE(after.str() == before.str());
        return;
      }
      case 7:
        if (random_.between(0, 9) == 0) {
          prompt_ = 0;
          return lockstep_.clear();
        }
        [[fallthrough]];
      default:
        if (lockstep_.length() > prompt_ + 70) return lockstep_.rollback(random_.between(40, 70));
        return lockstep_.step();
    }
  }

 private:
  Random random_;
  reference::Lockstep<T, Policy> lockstep_;
  Decoder<T, Policy> other_;
  index_t prompt_;  // tokens that are not taken back
};

template <Scalar T, Schedule Policy>
void soak(const char* name, const Policy& policy, const reference::Schedule& schedule) {
  const long wanted = stress::effort(4000);
  Random random(stress::seed());
  for (long done = 0; done < wanted;) {
    const auto seed = static_cast<std::uint64_t>(random.between(1, 1 << 30));
    SCOPED_TRACE("seed " + std::to_string(seed));
    const index_t dim = values_per_element<T> * random.between(1, 3);
    reference::Options options{.shape = {random.between(1, 2) * 2, 2, dim}, .capacity = random.between(1, 25)};
    options.pool = 2 * random.between(0, 3) + 1;
    options.observation_window = random.between(1, 4);
    if (random.between(0, 2) == 0) options.attention = {.window = random.between(1, 40), .sinks = random.between(0, 3)};
    // Some about where a cache grows, which is made for 256 tokens, and then for twice as many as it had.
    const index_t prompt = random.between(0, 7) == 0 ? random.between(1, 2) * 256 - random.between(1, 40) : 0;
    Soak<T, Policy> one(options, policy, schedule, seed, prompt);
    for (int i = 0; i < 500 && !one.is_close(); ++i, ++done) {
      one.operation();
      if (testing::Test::HasFailure()) return;
    }
  }
  stress::report(std::string("soak, ") + name, std::to_string(wanted) + " operations as the model");
}

TEST(Soak, FixedStride) { soak<half, FixedStride>("fixed-stride", {4}, reference::fixed_stride(4)); }
TEST(Soak, QuerySimilarity) {
  soak<float, QuerySimilarity>("query-similarity", {2, 0.7F}, reference::query_similarity(2, 0.7F));
}
TEST(Soak, SelfCalibrating) {
  soak<bfloat16, SelfCalibrating>("self-calibrating", {.late = 0.3F, .longest = 12},
                                  reference::self_calibrating(0.3L, 12));
}

}  // namespace
