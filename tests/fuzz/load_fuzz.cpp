// Any bytes as the saved state of a decoder or of a layer over a host's rows, with checksums that are right: refused,
// or good to go on with.
#include <cstring>
#include <sstream>

#include "fuzz/fuzz.hpp"

namespace {

using namespace recycled;

constexpr ModelShape model{1, {2, 1, 4}};

template <class Saved>
std::string saved(const Saved& one) {
  std::ostringstream stream;
  one.save(stream);
  return std::move(stream).str();
}

template <class Saved>
void go_on(Saved& decoder) {
  const std::vector<float> query(static_cast<std::size_t>(model.layer.query_size()), 0.5F), row(4, 0.25F);
  std::vector<float> out(query.size());
  for (int i = 0; i < 4; ++i) decoder.step(0, query, row, row, out);
  decoder.rollback(2);
  decoder.prefill(0, query, row, row, out);
  decoder.step(0, query, row, row, out);
}

/// Into `decoder`, which goes on first.
template <class Saved>
void load(Saved decoder, std::string state) {
  if (state.size() >= sizeof(std::uint64_t)) {
    detail::Checksum sum;
    sum.add(state.data(), state.size() - sizeof(std::uint64_t));
    const std::uint64_t value = sum.value();
    std::memcpy(state.data() + state.size() - sizeof value, &value, sizeof value);
  }
  go_on(decoder);
  const std::string before = saved(decoder);
  std::istringstream stream(state);
  try {
    decoder.load(stream);
  } catch (const std::invalid_argument&) {
    fuzz::check(saved(decoder) == before, "a state that is refused changes nothing");
    return;
  }
  saved(decoder);
  go_on(decoder);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 1) return 0;
  const std::string state(reinterpret_cast<const char*>(data + 1), size - 1);
  switch (data[0] % 4) {
    case 0:
      load(Decoder<half, FixedStride>(model, {.capacity = 3}, {2}), state);
      break;
    case 1:
      load(Decoder<float, SelfCalibrating>(model, {.capacity = 3, .sketch = {.coordinates = 4}}, {}, {.pool = 1}),
           state);
      break;
    case 2:
      load(Decoder<half, NeverFull, HeavyHitters>(model, {.capacity = 3}, {}, {.recent = 1, .observation_window = 2}),
           state);
      break;
    default:
      load(Decoder<half, NeverFull, Keyformer>(model, {.capacity = 3, .attention = {.window = 5}}, {},
                                               {.recent = 1, .observation_window = 2}),
           state);
  }
  return 0;
}
