// A host whose tensors are Eigen matrices: one toy transformer layer reads a prompt and decodes 300 tokens, with exact
// attention and with three schedules, always over the host's own KV memory.
#include <cstdio>
#include <recycled/recycled.hpp>

namespace {

using Eigen::Index, Eigen::MatrixXf, Eigen::VectorXf;
// A row a token, its KV heads side by side: [token, kv_heads * head_dim].
using KvMatrix = Eigen::Matrix<recycled::bfloat16, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

constexpr recycled::Shape shape{.query_heads = 8, .kv_heads = 2, .head_dim = 32};
constexpr Index width = 256, prompt = 2048, decoded = 300;

struct Weights {
  MatrixXf query = MatrixXf::Random(8 * 32, width);
  MatrixXf key = MatrixXf::Random(2 * 32, width);
  MatrixXf value = MatrixXf::Random(2 * 32, width);
  MatrixXf output = MatrixXf::Random(width, 8 * 32);
};

template <recycled::Schedule Policy>
class HostLayer {
 public:
  HostLayer(const Weights& weights, Policy policy) : weights_(weights), attention_(shape, {.capacity = 256}, policy) {}

  /// The host fills its cache with the prompt in its own way; the last query tells the layer what matters now.
  void read(const MatrixXf& tokens) {
    for (Index i = 0; i < tokens.cols(); ++i) append(tokens.col(i));
    const VectorXf query = weights_.query * tokens.rightCols<1>();
    attention_.observe(span(query), length_);
  }

  /// What the layer adds to the token: project, attend, project.
  VectorXf step(const VectorXf& token) {
    append(token);
    const VectorXf query = weights_.query * token;  // a real host applies RoPE here, and to the keys in append()
    VectorXf attended(shape.query_heads * shape.head_dim);
    const recycled::Strides strides{.position = keys_.outerStride(), .head = shape.head_dim};
    const recycled::KvView<recycled::bfloat16> kv{keys_.data(), values_.data(), strides, strides, length_};
    attention_.step(span(query), kv, {attended.data(), static_cast<std::size_t>(attended.size())});
    return weights_.output * attended;
  }

  recycled::HeadStatistics statistics() const { return attention_.statistics().total(); }

 private:
  static std::span<const float> span(const VectorXf& v) { return {v.data(), static_cast<std::size_t>(v.size())}; }

  void append(const VectorXf& token) {
    if (length_ == keys_.rows()) {  // rows may move: the layer asks for the view anew at every step
      keys_.conservativeResize(2 * length_ + 64, shape.kv_heads * shape.head_dim);
      values_.conservativeResize(2 * length_ + 64, shape.kv_heads * shape.head_dim);
    }
    keys_.row(length_) = (weights_.key * token).transpose().cast<recycled::bfloat16>();
    values_.row(length_) = (weights_.value * token).transpose().cast<recycled::bfloat16>();
    ++length_;
  }

  const Weights& weights_;
  KvMatrix keys_, values_;
  Index length_ = 0;
  recycled::LayerAttention<recycled::bfloat16, Policy> attention_;
};

/// Decodes the text and returns the layer's outputs, a column a token; prints a line of the table. Without `exact`,
/// these outputs are what the others will be compared with.
template <recycled::Schedule Policy>
MatrixXf decode(const char* name, Policy policy, const Weights& weights, const MatrixXf& text, const MatrixXf* exact) {
  HostLayer<Policy> layer(weights, policy);
  layer.read(text.leftCols(prompt));
  MatrixXf outputs(width, decoded);
  for (Index i = 0; i < decoded; ++i) outputs.col(i) = layer.step(text.col(prompt + i));

  const recycled::HeadStatistics did = layer.statistics();
  const double rows = static_cast<double>(did.rows_read) / static_cast<double>(shape.kv_heads * decoded);
  const MatrixXf& truth = exact != nullptr ? *exact : outputs;
  const float error = (outputs - truth).colwise().norm().cwiseQuotient(truth.colwise().norm()).mean();
  std::printf("%-22s %10llu %12.0f %10.4f\n", name, static_cast<unsigned long long>(did.full_steps), rows,
              static_cast<double>(error));
  return outputs;
}

}  // namespace

int main() {
  // A head looks for tokens like its own, as trained heads do: its query projection resembles its key projection.
  Weights weights;
  for (Index h = 0; h < shape.query_heads; ++h) {
    auto head = weights.query.middleRows(h * 32, 32);
    head = 0.06F * (head + 2 * weights.key.middleRows(h / shape.group() * 32, 32)).eval();
  }
  // A text that dwells on one of 12 topics for 40 tokens, then turns to another.
  const MatrixXf topics = MatrixXf::Random(width, 12);
  MatrixXf text = 0.5F * MatrixXf::Random(width, prompt + decoded);
  for (Index i = 0; i < text.cols(); ++i) text.col(i) += topics.col(i / 40 * 7 % 12);

  std::printf("%-22s %10s %12s %10s\n", "schedule", "full steps", "rows a step", "error");
  const MatrixXf exact = decode("always full (exact)", recycled::AlwaysFull{}, weights, text, nullptr);
  decode("never full", recycled::NeverFull{}, weights, text, &exact);
  decode("fixed stride 10", recycled::FixedStride{.stride = 10}, weights, text, &exact);
  decode("query similarity 5", recycled::QuerySimilarity{.stride = 5, .threshold = 0.85F}, weights, text, &exact);
}
