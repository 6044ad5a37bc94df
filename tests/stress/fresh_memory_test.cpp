// Memory that is handed out may be full of anything: what nobody has written is not read, and not saved. Not by a layer
// either that goes on from a saved state, with the same bits.
#include "reference/replaced_new.hpp"
#include "stress/life.hpp"

namespace {

using namespace recycled;
using reference::Random;
using stress::Life, stress::Outcome;

template <Scalar T, Scalar R = T>
long run() {
  long compared = 0;
  ThreadPool pool(1);
  stress::cases(stress::effort(40), [&](Random& random) {
    Life<T, R> life(random);
    const auto rows = life.cache(random, Life<T, R>::any_layout(random));
    reference::filling = 0;
    const Outcome expected = life.live(rows, pool);
    life.saved = true;
    // NaNs of every type and -1; large numbers; a signalling half.
    for (const int byte : {0xFF, 0x7F, 0x7D}) {
      reference::filling = byte;
      EXPECT_TRUE(life.live(rows, pool) == expected) << "memory full of " << byte;
      compared += static_cast<long>(expected.outputs.size()) * life.shape.kv_heads;
    }
    reference::filling = -1;
  });
  return compared;
}

TEST(FreshMemory, MayBeFullOfAnything) {
  const long compared = run<float>() + run<half>() + run<bfloat16>() + run<q8_0>() + run<float, half>();
  stress::report("poison, memory handed out", std::to_string(compared) + " outputs of KV heads, 0 bits changed");
}

}  // namespace
