// What exact attention looks at: every weight of a step, in double precision, by the plain formula.
#pragma once

#include <Eigen/Core>
#include <cmath>
#include <recycled/types/kv_view.hpp>
#include <span>
#include <vector>

namespace replay {

using recycled::index_t;

class Truth {
 public:
  /// `view` holds all tokens of the trace, rounded to the type of the replay.
  template <recycled::Scalar T>
  Truth(const recycled::Shape& shape, const recycled::KvView<T>& view)
      : shape_(shape), keys_(static_cast<std::size_t>(shape.kv_heads), Matrix(view.length, shape.head_dim)) {
    std::vector<float> row(static_cast<std::size_t>(shape.head_dim));
    for (index_t g = 0; g < shape.kv_heads; ++g) {
      for (index_t j = 0; j < view.length; ++j) {
        recycled::decode(view.key(j, g), shape.head_dim, row.data());
        keys(g).row(j) = Eigen::Map<const Eigen::RowVectorXf>(row.data(), shape.head_dim).cast<double>();
      }
    }
  }

  /// The weights of one query [query_heads, head_dim] over the first `length` positions: softmax(q k / sqrt(head_dim)).
  void attend(std::span<const float> query, index_t length) {
    const auto q = Eigen::Map<const RowMatrixXf>(query.data(), shape_.query_heads, shape_.head_dim).cast<double>();
    weights_.resize(length, shape_.query_heads);
    for (index_t h = 0; h < shape_.query_heads; ++h) {
      auto column = weights_.col(h);
      column.noalias() = keys(h / shape_.group()).topRows(length) * q.row(h).transpose();
      column /= std::sqrt(static_cast<double>(shape_.head_dim));
      column = (column.array() - column.maxCoeff()).exp();
      column /= column.sum();
    }
  }

  /// The share of that attention on `positions`, summed over the query heads of KV head `g`.
  double covered(index_t g, const std::vector<index_t>& positions) const {
    double sum = 0;
    for (index_t h = g * shape_.group(); h < (g + 1) * shape_.group(); ++h) {
      for (const index_t j : positions) sum += weights_(j, h);
    }
    return sum;
  }

 private:
  using Matrix = Eigen::MatrixXd;
  using RowMatrixXf = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

  Matrix& keys(index_t g) { return keys_[static_cast<std::size_t>(g)]; }

  recycled::Shape shape_;
  std::vector<Matrix> keys_;  // for each KV head [position, head_dim]
  Matrix weights_;            // [position, query head]
};

/// Mean over the query heads of |out - exact| / |exact|, the norms over the head's values; NaN if any of them is.
inline double relative_error(std::span<const float> out, std::span<const float> exact, index_t query_heads) {
  const index_t dim = static_cast<index_t>(out.size()) / query_heads;
  double sum = 0;
  for (index_t h = 0; h < query_heads; ++h) {
    const auto got = Eigen::Map<const Eigen::VectorXf>(out.data() + h * dim, dim).cast<double>();
    const auto wanted = Eigen::Map<const Eigen::VectorXf>(exact.data() + h * dim, dim).cast<double>();
    const double difference = (got - wanted).norm();
    if (difference != 0) sum += difference / wanted.norm();
  }
  return sum / static_cast<double>(query_heads);
}

}  // namespace replay
