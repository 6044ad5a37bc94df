// Any bytes as the saved state of a decoder, of a layer over a host's rows or of a budget, with checksums that are
// right: refused, or good to go on with.
#include <cmath>
#include <sstream>

#include "fuzz/hosted.hpp"
#include "reference/saved.hpp"

namespace {

using namespace recycled;
using reference::saved;

template <Scalar T>
constexpr ModelShape model{1, {2, 1, std::max(values_per_element<T>, index_t{4})}};

template <bool chooses, class Saved>
void go_on(Saved& decoder, std::size_t dim) {
  const std::vector<float> query(2 * dim, 0.5F), row(dim, 0.25F);
  std::vector<float> out(query.size());
  for (int i = 0; i < 4; ++i) decoder.step(0, query, row, row, out);
  decoder.rollback(2);
  decoder.prefill(0, query, row, row, out);
  decoder.step(0, query, row, row, out);
  const std::vector<float> scores(static_cast<std::size_t>(decoder.length()), 0.5F);
  if constexpr (chooses) decoder.choose_by_scores(0, scores);
  decoder.step(0, query, row, row, out);
}

/// Whether it was loaded.
template <class Saved>
bool load_into(Saved& one, const std::string& state) {
  const std::string before = saved(one);
  std::istringstream stream(state);
  try {
    one.load(stream);
  } catch (const std::invalid_argument&) {
    fuzz::check(saved(one) == before, "a state that is refused changes nothing");
    return false;
  }
  saved(one);
  return true;
}

/// Into `decoder`, which goes on first.
template <bool chooses, class Saved>
void load(Saved decoder, const std::string& state, std::size_t dim) {
  go_on<chooses>(decoder, dim);
  if (!load_into(decoder, state)) return;
  if constexpr (requires { decoder.restore(); }) decoder.restore();
  go_on<chooses>(decoder, dim);
}

/// A decoder's, or a layer's whose rows lie in scattered pages.
template <Scalar T, class Policy, class Keep = TopK, Scalar R = T>
void load(bool hosted, const std::string& state, const LayerOptions& options, const Policy& schedule,
          const Keep& selection = {}) {
  constexpr bool chooses = detail::recycles<Policy>;
  constexpr auto dim = static_cast<std::size_t>(model<T>.layer.head_dim);
  if (!hosted) return load<chooses>(Decoder<T, Policy, Keep, R>(model<T>, options, schedule, selection), state, dim);
  using Layer = LayerAttention<T, Policy, Keep, R>;
  const fuzz::Layout scattered{.gap = 1, .room = 2, .page = 3, .swaps = {{0, 9}, {1, 8}, {2, 15}, {4, 11}}};
  load<chooses>(fuzz::Hosted<Layer, T>({model<T>.layer, options, schedule, selection}, scattered, 80), state, dim);
}

void load_budget(const std::string& state) {
  Budget budget(0.5F);
  budget.account({1, 1, 2});
  if (!load_into(budget, state)) return;
  budget.account({2, 100, 300});
  fuzz::check(budget.spent() >= 0 && std::isfinite(budget.allowed_loss()), "a budget goes on");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 1) return 0;
  std::string state(reinterpret_cast<const char*>(data + 1), size - 1);
  if (state.size() >= sizeof(std::uint64_t)) state = reference::signed_again(state);
  if (data[0] >= 0xF0) return load_budget(state), 0;
  const bool hosted = data[0] % 8 > 3;
  const Budgeted budgeted{std::make_shared<Budget>(0.5F)};
  switch (data[0] % 16) {
    case 0:
    case 4:
      load<half>(hosted, state, {.capacity = 3}, FixedStride{2});
      break;
    case 1:
    case 5:
      load<float>(hosted, state, {.capacity = 3, .sketch = {.coordinates = 4}}, SelfCalibrating{}, TopK{.pool = 1});
      break;
    case 2:
    case 6:
      load<half>(hosted, state, {.capacity = 3}, NeverFull{}, HeavyHitters{.recent = 1, .observation_window = 2});
      break;
    case 3:
    case 7:
      load<half>(hosted, state, {.capacity = 3, .attention = {.window = 5}}, NeverFull{},
                 Keyformer{.recent = 1, .observation_window = 2});
      break;
    case 8:
    case 12:
      load<half>(hosted, state, {.capacity = 3}, AlwaysFull{});
      break;
    case 9:
    case 13:
      load<q8_0>(hosted, state, {.capacity = 3}, QuerySimilarity{2, 0.5F}, TopK{.memory = 0.5F});
      break;
    case 10:
    case 14:
      load<bfloat16>(hosted, state, {.capacity = 3, .sketch = {.keys = true}}, FixedStride{2});
      break;
    default:
      load<float, Budgeted, TopK, half>(hosted, state, {.capacity = 3, .sketch = {.coordinates = 4}}, budgeted);
  }
  return 0;
}
