// What a stranger writes first: it must build from the package, the source tree, or the bare headers.
#include <recycled/recycled.hpp>
#include <vector>

int main() {
  const recycled::Shape shape{.query_heads = 4, .kv_heads = 2, .head_dim = 8};
  recycled::Decoder<recycled::bfloat16> decoder{{.layers = 1, .layer = shape}, {.capacity = 4}, {.stride = 3}};
  const std::vector<float> query(4 * 8, 0.5F), key(2 * 8, 0.25F), value(2 * 8, 1.0F);
  std::vector<float> out(4 * 8);
  for (int token = 0; token < 10; ++token) decoder.step(0, query, key, value, out);

  recycled::ThreadPool pool{2};
  decoder.step(0, query, key, value, out, pool);
  const bool ok = decoder.length() == 11 && out[0] > 0.999F && out[0] < 1.001F;
  return ok ? 0 : 1;
}
