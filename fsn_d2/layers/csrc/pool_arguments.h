// The arguments of selective_roi_pool, checked, in the form of its sibling's: one source, nothing
// shifted or merged. fsn_d2/layers/selective_roi_pool.py documents them.

#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "arguments.h"

namespace fsn_d2 {

enum class Mode { kMax, kAvg };

// Where a maximum starts, in every type: as in torchvision's roi_pool.
constexpr float kLowest = std::numeric_limits<float>::lowest();

inline Mode mode_named(const std::string& name) {
  require(name == "max" || name == "avg", "mode must be one of 'max', 'avg', got '", name, "'");
  return name == "max" ? Mode::kMax : Mode::kAvg;
}

class PoolRequest {
 public:
  PoolRequest(
      const Tensor& rois,
      const std::optional<Tensor>& levels,
      const Tensor& bank_index,
      const std::vector<double>& spatial_scales)
      : bank_indices_{bank_index},
        request{rois, levels, bank_indices_, origins_, spatial_scales, 0, merge_} {}

  PoolRequest(const PoolRequest&) = delete;
  PoolRequest& operator=(const PoolRequest&) = delete;

 private:
  const std::vector<Tensor> bank_indices_;
  const std::vector<int64_t> origins_;
  const std::string merge_ = "sum";

 public:
  const Request request;
};

// As describe_backward; the gradient of a maximum reads the inputs too, and names cells by 32 bits.
inline Pooling describe_pool_backward(
    const Tensor& grad_output,
    const std::vector<Tensor>& inputs,
    const std::vector<int64_t>& input_sizes,
    const Request& request,
    Mode mode) {
  const Pooling pooling = describe_backward(grad_output, inputs, input_sizes, request);
  if (mode == Mode::kMax) {
    require_inputs(inputs, pooling, grad_output);
    for (const Level& level : pooling.levels) {
      require(
          level.width == 0 || level.height <= std::numeric_limits<int32_t>::max() / level.width,
          "the gradient of a maximum needs maps of fewer than 2^31 cells, got ",
          level.height,
          " x ",
          level.width);
    }
  }
  return pooling;
}

}  // namespace fsn_d2
