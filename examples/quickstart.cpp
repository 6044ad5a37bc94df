// Both doors of Recycled: g++ -std=c++20 -O2 -march=native -I include -I /usr/include/eigen3 examples/quickstart.cpp
#include <iostream>
#include <recycled/recycled.hpp>
#include <vector>

std::vector<float> tensor(Eigen::Index size) {  // stands for what your model computes
  const Eigen::VectorXf random = Eigen::VectorXf::Random(size);
  return {random.data(), random.data() + size};
}

int main() {
  const recycled::Shape shape{.query_heads = 8, .kv_heads = 2, .head_dim = 64};
  const recycled::LayerOptions options{.capacity = 64};  // a full step reads every position, a recycled one 64 + 1
  std::vector<float> out(8 * 64);

  // The KV cache is yours, [token, kv_head, head_dim] here, and is read in place. One object a layer.
  const std::vector<float> keys = tensor(1100 * 2 * 64), values = tensor(1100 * 2 * 64);
  recycled::LayerAttention<float, recycled::FixedStride> attention{shape, options, {.stride = 10}};
  for (int length = 1001; length <= 1100; ++length) {
    const auto kv = recycled::KvView<float>::position_major(keys.data(), values.data(), shape, length);
    attention.step(tensor(8 * 64), kv, out);
  }
  const recycled::HeadStatistics did = attention.statistics().heads[0];
  std::cout << did.full_steps << " full and " << did.recycled_steps << " recycled steps of a head read "
            << did.rows_read << " rows; full attention would have read " << 100 * (1001 + 1100) / 2 << '\n';

  // The library keeps the KV cache, bfloat16 here, and takes the prompt as well. One object for all layers.
  recycled::Decoder<recycled::bfloat16> decoder{{.layers = 1, .layer = shape}, options, {.stride = 10}};
  std::vector<float> prompt_out(200 * 8 * 64);
  decoder.prefill(0, tensor(200 * 8 * 64), tensor(200 * 2 * 64), tensor(200 * 2 * 64), prompt_out);
  for (int token = 0; token < 100; ++token) decoder.step(0, tensor(8 * 64), tensor(2 * 64), tensor(2 * 64), out);
  std::cout << "the cache holds " << decoder.length() << " tokens; the last output begins with " << out[0] << '\n';
}
