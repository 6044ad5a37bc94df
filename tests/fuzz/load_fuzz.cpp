// Any bytes as the saved state of a decoder or of a layer over a host's rows, with checksums that are right: refused,
// or good to go on with.
#include <sstream>

#include "fuzz/hosted.hpp"
#include "reference/saved.hpp"

namespace {

using namespace recycled;
using reference::saved;

constexpr ModelShape model{1, {2, 1, 4}};

template <bool chooses, class Saved>
void go_on(Saved& decoder) {
  const std::vector<float> query(static_cast<std::size_t>(model.layer.query_size()), 0.5F), row(4, 0.25F);
  std::vector<float> out(query.size());
  for (int i = 0; i < 4; ++i) decoder.step(0, query, row, row, out);
  decoder.rollback(2);
  decoder.prefill(0, query, row, row, out);
  decoder.step(0, query, row, row, out);
  const std::vector<float> scores(static_cast<std::size_t>(decoder.length()), 0.5F);
  if constexpr (chooses) decoder.choose_by_scores(0, scores);
  decoder.step(0, query, row, row, out);
}

/// Into `decoder`, which goes on first.
template <bool chooses, class Saved>
void load(Saved decoder, std::string state) {
  if (state.size() >= sizeof(std::uint64_t)) state = reference::signed_again(state);
  go_on<chooses>(decoder);
  const std::string before = saved(decoder);
  std::istringstream stream(state);
  try {
    decoder.load(stream);
  } catch (const std::invalid_argument&) {
    fuzz::check(saved(decoder) == before, "a state that is refused changes nothing");
    return;
  }
  saved(decoder);
  if constexpr (requires { decoder.restore(); }) decoder.restore();
  go_on<chooses>(decoder);
}

/// A decoder's, or a layer's whose rows lie in scattered pages.
template <Scalar T, class Policy, class Keep = TopK>
void load(bool hosted, const std::string& state, const LayerOptions& options, const Policy& schedule,
          const Keep& selection = {}) {
  constexpr bool chooses = detail::recycles<Policy>;
  if (!hosted) return load<chooses>(Decoder<T, Policy, Keep>(model, options, schedule, selection), state);
  using Layer = LayerAttention<T, Policy, Keep>;
  const fuzz::Layout scattered{.gap = 1, .room = 2, .page = 3, .swaps = {{0, 9}, {1, 8}, {2, 15}, {4, 11}}};
  load<chooses>(fuzz::Hosted<Layer, T>({model.layer, options, schedule, selection}, scattered, 80), state);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 1) return 0;
  const std::string state(reinterpret_cast<const char*>(data + 1), size - 1);
  const bool hosted = data[0] % 8 > 3;
  if (data[0] % 16 > 7) {
    load<half>(hosted, state, {.capacity = 3}, AlwaysFull{});
    return 0;
  }
  switch (data[0] % 4) {
    case 0:
      load<half>(hosted, state, {.capacity = 3}, FixedStride{2});
      break;
    case 1:
      load<float>(hosted, state, {.capacity = 3, .sketch = {.coordinates = 4}}, SelfCalibrating{}, TopK{.pool = 1});
      break;
    case 2:
      load<half>(hosted, state, {.capacity = 3}, NeverFull{}, HeavyHitters{.recent = 1, .observation_window = 2});
      break;
    default:
      load<half>(hosted, state, {.capacity = 3, .attention = {.window = 5}}, NeverFull{},
                 Keyformer{.recent = 1, .observation_window = 2});
  }
  return 0;
}
