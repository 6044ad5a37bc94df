// Any order of operations on a decoder: one that is copied, saved and loaded between them does the same, bit for bit.
#include <bit>
#include <optional>
#include <sstream>

#include "fuzz/fuzz.hpp"

namespace {

using namespace recycled;
using fuzz::Bytes;
using fuzz::check;

constexpr ModelShape model{2, {4, 2, 8}};

template <class Host>
std::string saved(const Host& host) {
  std::ostringstream stream;
  host.save(stream);
  return std::move(stream).str();
}

/// What `operation` does to both, an error too; returns the outputs of one.
template <class Host, class F>
void both(Host& one, Host& other, const F& operation) {
  const auto outcome = [&](Host& host) {
    std::vector<float> out(static_cast<std::size_t>(8 * model.layer.query_size()));
    const std::string before = saved(host);
    std::string error;
    try {
      operation(host, out);
    } catch (const std::invalid_argument& refused) {
      error = refused.what();
      check(saved(host) == before, "what is refused changes nothing");
    }
    std::string bits(reinterpret_cast<const char*>(out.data()), out.size() * sizeof(float));
    return error + bits;
  };
  check(outcome(one) == outcome(other), "copies and loaded states go on with the same bits");
}

template <class Host>
void operations(Bytes& bytes, const Host& made) {
  Host one = made, other = made;
  while (!bytes.empty()) {
    const index_t layer = bytes.between(0, 2), tokens = bytes.between(1, 8);
    const auto what = bytes.between(0, 11);
    const index_t amount = bytes.between(0, 40);
    const auto rows = bytes.numbers(tokens * model.layer.kv_heads * model.layer.head_dim);
    const auto queries = bytes.numbers(tokens * model.layer.query_size());
    both(one, other, [&](Host& host, std::vector<float>& out) {
      const std::span<float> room(out.data(), queries.size());
      switch (what) {
        case 0:
          return host.prefill(layer, queries, rows, rows, room);
        case 1:
          return host.rollback(amount % 5);
        case 2:
          return host.truncate(amount);
        case 3:
          if (amount == 0) host.clear();
          return;
        case 4:
          if (host.length() > 60) host.rollback(50);
          return;
        default: {
          const std::size_t query = static_cast<std::size_t>(model.layer.query_size()), row = 16;
          for (index_t i = 0; i < (layer == 2 ? 2 : 1); ++i) {
            const index_t at = layer == 2 ? i : layer;
            host.step(at, std::span(queries).first(query), std::span(rows).first(row), std::span(rows).first(row),
                      room.first(query));
          }
        }
      }
    });
    if (amount % 4 == 0) other = other.fork();
    if (amount % 4 == 1) {
      std::istringstream state(saved(other));
      other = made;
      other.load(state);
    }
  }
  check(saved(one) == saved(other), "copies and loaded states are the same");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Bytes bytes(data, std::min(size, std::size_t{4096}));
  switch (bytes.between(0, 2)) {
    case 0:
      operations(bytes, Decoder<half, FixedStride>(model, {.capacity = 6}, {3}));
      break;
    case 1:
      operations(bytes,
                 Decoder<float, SelfCalibrating>(model, {.capacity = 6, .sketch = {.coordinates = 4, .full_every = 3}},
                                                 {.longest = 9}, {.pool = 1}));
      break;
    default:
      operations(bytes, Decoder<bfloat16, QuerySimilarity, HeavyHitters>(
                            model, {.capacity = 6, .attention = {.window = 20, .sinks = 2}}, {2, 0.5F},
                            {.recent = 3, .observation_window = 2}));
  }
  return 0;
}
