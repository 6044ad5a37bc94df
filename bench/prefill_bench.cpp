// Causal attention of a prompt: beside Eigen's matrix product, the most that plain code gets out of the machine, and
// beside other engines.
#include <Eigen/Dense>
#include <fstream>

#include "command_line.hpp"
#include "peer.hpp"
#include "table.hpp"

namespace {

using namespace bench;
using recycled::bfloat16;
using recycled::half;
using recycled::q8_0;

/// Eigen's product of matrices that fit in L2, one on each thread.
class Product {
 public:
  static constexpr Eigen::Index size = 384;
  explicit Product(int threads) : a_(make(threads)), b_(make(threads)), c_(make(threads)) {}
  void operator()(recycled::ThreadPool& pool) {
    pool(pool.threads(), [this](index_t i) {
      const auto t = static_cast<std::size_t>(i);
      c_[t].noalias() = a_[t] * b_[t];
      benchmark::DoNotOptimize(c_[t].data());
    });
  }
  static double flops(int threads) { return 2.0 * size * size * size * threads; }

 private:
  static std::vector<Eigen::MatrixXf> make(int threads) {
    return {static_cast<std::size_t>(threads), Eigen::MatrixXf::Random(size, size)};
  }
  std::vector<Eigen::MatrixXf> a_, b_, c_;
};

template <class T>
void prefill(const Case& c, Run& run) {
  if (!std::regex_search(id<T>(c), run.options.only)) return;
  recycled::ThreadPool pool(c.threads);
  const index_t row = c.shape.head_dim / recycled::values_per_element<T>;
  recycled::Array<T> keys(c.length * c.shape.kv_heads * row), values(keys.size());
  recycled::encode(normals(keys.size() * recycled::values_per_element<T>, 1).data(),
                   keys.size() * recycled::values_per_element<T>, keys.data());
  recycled::encode(normals(keys.size() * recycled::values_per_element<T>, 2).data(),
                   keys.size() * recycled::values_per_element<T>, values.data());
  const auto view = recycled::KvView<T>::position_major(keys.data(), values.data(), c.shape, c.length);
  const auto queries = normals(c.length * c.shape.query_size(), 3);
  std::vector<float> out(queries.size());
  recycled::LayerAttention<T, recycled::AlwaysFull> layer(c.shape, {});
  Product product(c.threads);

  Group group;
  group.add("fma", [&] { Multiplier{}(pool); });
  group.add("eigen", [&] { product(pool); });
  group.add("prefill", [&] {
    layer.clear();
    layer.prefill(queries, view, out, pool);
    benchmark::DoNotOptimize(out.data());
  });
  run.peers.add(
      group,
      [&](bool /*position_major*/, const std::string& type) {
        return "prefill " + type + " " + std::to_string(c.shape.head_dim) + " " + std::to_string(c.shape.kv_heads) +
               " " + std::to_string(c.shape.group()) + " " + std::to_string(c.length) + " " + std::to_string(c.threads);
      },
      type_name<T>, false);
  auto times = group.run();
  const double fma = run.fma(c.threads, Multiplier::flops(c.threads) / median(times["fma"]));
  const double eigen = run.product(c.threads, Product::flops(c.threads) / median(times["eigen"]));
  // Half of the square is causal.
  const double flops = 2.0 * static_cast<double>(c.shape.query_size()) * static_cast<double>(c.length) *
                       static_cast<double>(c.length + 1);
  // K and V are given in the order of the tokens; peers take them as they like it.
  std::vector<Row> rows{{"prefill", type_name<T>, c, layout(true), 0, flops, times["prefill"]}};
  Row like = rows.front();
  like.layout.clear();
  for (const Row& peer : run.peers.rows(times, like)) rows.push_back(peer);
  for (Row& result : rows) {
    result.of_fma = flops / result.median() / fma;
    result.of_product = flops / result.median() / eigen;
    if (result.name == "prefill") run.peers.compare(times, result);
    std::printf("%-12s %-5s %4ld %3ld %3ld %6ld %2d %10.0f %5.1f%% %8.1f %5.0f%% %5.0f%% %7s %7s %7s\n",
                result.name.c_str(), result.type.c_str(), static_cast<long>(c.shape.head_dim),
                static_cast<long>(c.shape.kv_heads), static_cast<long>(c.shape.group()), static_cast<long>(c.length),
                c.threads, result.median(), 100 * result.spread(), flops / result.median() * 1e-3, 100 * result.of_fma,
                100 * result.of_product, ratio(result, "ggml").c_str(), ratio(result, "onnxruntime").c_str(),
                ratio(result, "openvino").c_str());
    std::fflush(stdout);
    run.rows.push_back(result);
  }
}

}  // namespace

int main(int argc, char** argv) {
  Run run(argc, argv);
  std::printf("%-12s %-5s %4s %3s %3s %6s %2s %10s %6s %8s %6s %6s %7s %7s %7s\n", "name", "type", "dim", "kv", "grp",
              "tokens", "t", "us", "+-", "GFLOP/s", "FMA", "Eigen", "x ggml", "x ORT", "x OV");
  const auto shape = [](index_t dim, index_t kv_heads, index_t group) {
    return recycled::Shape{kv_heads * group, kv_heads, dim, dim};
  };
  for (const int threads : {1, 2}) prefill<half>({shape(128, 2, 4), 4096, 0, threads}, run);
  prefill<half>({shape(128, 2, 4), 512, 0, 2}, run);
  prefill<half>({shape(64, 3, 3), 4096, 0, 2}, run);
  for (const index_t group : {1, 8}) prefill<half>({shape(128, 2, group), 4096, 0, 2}, run);
  prefill<float>({shape(128, 2, 4), 4096, 0, 2}, run);
  prefill<bfloat16>({shape(128, 2, 4), 4096, 0, 2}, run);
  prefill<q8_0>({shape(128, 2, 4), 4096, 0, 2}, run);
  run.save();
}
