// torchvision's op for non-maximum suppression, the one that an exported model calls. The library
// that torchvision's Python package brings has it too, but loads into a Python process alone.

#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

namespace {

// Intersection over union of two boxes (x1, y1, x2, y2).
float overlap(const float* a, const float* b) {
  const float width = std::min(a[2], b[2]) - std::max(a[0], b[0]);
  const float height = std::min(a[3], b[3]) - std::max(a[1], b[1]);
  const float common = std::max(width, 0.0f) * std::max(height, 0.0f);
  return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common);
}

at::Tensor nms(const at::Tensor& boxes, const at::Tensor& scores, double threshold) {
  const auto order = scores.argsort(/*stable=*/true, /*dim=*/0, /*descending=*/true);
  const auto sorted = boxes.index_select(0, order).contiguous();
  const auto* box = sorted.const_data_ptr<float>();
  std::vector<int64_t> kept;
  for (int64_t i = 0; i < sorted.size(0); ++i) {
    const auto covers = [&](int64_t j) { return overlap(box + 4 * j, box + 4 * i) > threshold; };
    if (std::none_of(kept.begin(), kept.end(), covers)) {
      kept.push_back(i);
    }
  }
  return order.index_select(0, at::tensor(kept, at::kLong));
}

}  // namespace

TORCH_LIBRARY(torchvision, library) {
  library.def("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor", nms);
}
