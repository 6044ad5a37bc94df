// Which directions of a head's keys are worth a coordinate.
//
// What counts is not how far coordinates are off, but logits. So with keys k and queries q as they come, E[qq^T] = S,
// the axes are the principal ones of S^(1/2) k: of all projections to so few coordinates they keep most of q.k =
// (S^(-1/2) q).(S^(1/2) k). Keys get S^(1/2) times these axes, queries S^(-1/2) times them.
#pragma once

#include <Eigen/Eigenvalues>
#include <span>

#include "recycled/types/shape.hpp"

namespace recycled::inline RECYCLED_ABI::detail {

/// E[qq^T] of vectors that stand side by side, with a share of what it would be if they came from everywhere: the fewer
/// were seen, the less they say about others. Those that are no numbers say nothing.
inline Eigen::MatrixXf query_moments(const Eigen::Ref<const Eigen::MatrixXf>& queries) {
  const Eigen::Index dim = queries.rows();
  const Eigen::MatrixXf everywhere = Eigen::MatrixXf::Identity(dim, dim);
  Eigen::MatrixXf moments = Eigen::MatrixXf::Zero(dim, dim);
  for (const auto& query : queries.colwise()) {
    if (query.allFinite()) moments.selfadjointView<Eigen::Lower>().rankUpdate(query);
  }
  moments = Eigen::MatrixXf(moments.selfadjointView<Eigen::Lower>());
  const float mean = moments.trace() / static_cast<float>(dim);
  if (!(mean > 0) || !std::isfinite(mean)) return everywhere;
  const float share = std::max(0.05F, static_cast<float>(dim) / static_cast<float>(4 * queries.cols()));
  return moments / mean + share * everywhere;
}

/// Where the axes of one head go: each `stride` floats behind the one before, zeros behind its values.
struct SketchAxes {
  float* keys;      ///< a key times an axis is its coordinate
  float* queries;   ///< a query times an axis is what a step of the code means to its logit
  float* inverses;  ///< steps of the code to a unit of the coordinate; 0 for an axis that there is none of
  index_t stride;
};

/// The leading `coordinates` axes for keys of these second moments.
inline void find_axes(const Eigen::MatrixXf& key_moments, const Eigen::MatrixXf& query_moments, index_t coordinates,
                      const SketchAxes& to) {
  // Sixteen even steps, wider than the 0.335 deviations that lose least of a normal distribution: keys have tails, and
  // those of later positions stray further.
  constexpr float step_of_deviation = 0.6F;
  const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXf> of_queries(query_moments);
  const Eigen::MatrixXf root = of_queries.operatorSqrt(), inverse = of_queries.operatorInverseSqrt();
  const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXf> of_keys(root * key_moments * root);
  std::fill_n(to.keys, coordinates * to.stride, 0.0F);
  std::fill_n(to.queries, coordinates * to.stride, 0.0F);
  std::fill_n(to.inverses, coordinates, 0.0F);
  for (index_t c = 0; c < std::min(coordinates, key_moments.rows()); ++c) {
    const index_t from = key_moments.rows() - 1 - c;  // eigenvalues ascend
    if (!(of_keys.eigenvalues()[from] > 0)) continue;
    const float step = step_of_deviation * std::sqrt(of_keys.eigenvalues()[from]);
    const Eigen::VectorXf key_axis = root * of_keys.eigenvectors().col(from);
    const Eigen::VectorXf query_axis = inverse * of_keys.eigenvectors().col(from) * step;
    std::copy(key_axis.begin(), key_axis.end(), to.keys + c * to.stride);
    std::copy(query_axis.begin(), query_axis.end(), to.queries + c * to.stride);
    to.inverses[c] = 1 / step;
  }
}

}  // namespace recycled::inline RECYCLED_ABI::detail
