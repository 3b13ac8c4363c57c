// selective_roi_align on the CPU: forward and backward.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "../arguments.h"
#include "../banks.h"
#include "bank_views.h"
#include "capability.h"
#include "gradients.h"
#include "layout.h"
#include "pooling.h"
#include "roi_table.h"
#include "roi_values.h"
#include "row_sharing.h"

namespace fsn_d2 {
namespace {

constexpr const char* kName = "selective_roi_align";

Tensor selective_roi_align(
    std::vector<Tensor> inputs,
    const Tensor& rois,
    std::optional<Tensor> levels,
    std::vector<Tensor> bank_indices,
    std::vector<int64_t> origins,
    std::vector<int64_t> output_size,
    std::vector<double> spatial_scales,
    int64_t sampling_ratio,
    std::string merge) {
  running_op = kName;
  require_pair(output_size);
  const Request request{rois, levels, bank_indices, origins, spatial_scales, sampling_ratio, merge};
  const Pooling pooling = describe(bank_sizes(inputs), output_size[0], output_size[1], request);
  require_type_of_rois(rois);
  require_same_device(request, inputs, inputs[0]);
  Tensor output = new_output(inputs[0], pooling);
  for_compute_type(output.scalar_type(), [&](auto compute) {
    using scalar_t = decltype(compute);
    const CheckedRois<scalar_t> checked(request, pooling);
    const ReadableBanks<scalar_t> banks(inputs, pooling);
    const auto writer = writer_to<scalar_t>(output, pooling);
    torch::stable::parallel_for(0, pooling.rois, 1, [&](int64_t begin, int64_t end) {
      run_on_this_machine<PoolRois>(checked.table(), banks.views, writer, begin, end);
    });
  });
  return output;
}

template <typename scalar_t>
void pool_backward(
    const RoiTable<scalar_t>& table,
    const std::vector<BankView<const scalar_t>>& banks,
    ReadRoi<scalar_t> read,
    const void* grad_output,
    const std::vector<BankView<scalar_t>>& grad_banks) {
  const Pooling& pooling = table.pooling;
  const std::vector<int64_t> first_rows = first_rows_of_levels(pooling);
  std::vector<RoiGradient<scalar_t>> chunk(std::min(kChunk, pooling.rois));
  add_by_rows(
      pooling,
      [&](int64_t first, int64_t begin, int64_t end) {
        run_on_this_machine<PrepareGradients>(
            table, banks, read, grad_output, &chunk, first, begin, end);
      },
      [&](int64_t size, std::vector<int64_t>& work) {
        for (int64_t n = 0; n < size; ++n) {
          const PlacedRoi<scalar_t>& roi = chunk[n].roi;
          const int64_t top = first_rows[roi.level] + roi.image * pooling.levels[roi.level].height;
          for (const auto& row : roi.rows.all()) {
            work[top + row.cell] += static_cast<int64_t>(roi.columns.all().size());
          }
        }
      },
      [&](int64_t size, int64_t begin, int64_t end) {
        run_on_this_machine<ScatterGradients>(
            table, grad_banks, chunk, size, first_rows, begin, end);
      });
}

std::vector<Tensor> selective_roi_align_backward(
    const Tensor& grad_output,
    std::vector<Tensor> inputs,
    std::vector<int64_t> input_sizes,
    bool planes,
    bool,  // deterministic: always is
    const Tensor& rois,
    std::optional<Tensor> levels,
    std::vector<Tensor> bank_indices,
    std::vector<int64_t> origins,
    std::vector<double> spatial_scales,
    int64_t sampling_ratio,
    std::string merge) {
  running_op = kName;
  const Request request{rois, levels, bank_indices, origins, spatial_scales, sampling_ratio, merge};
  const Pooling pooling = describe_backward(grad_output, inputs, input_sizes, request);
  require_type_of_rois(rois);
  require_same_device(request, inputs, grad_output);
  GradientBanks gradients(grad_output, pooling, planes);
  const Tensor grad = in_order_of_output(grad_output, pooling);
  for_compute_type(grad_output.scalar_type(), [&](auto compute) {
    using scalar_t = decltype(compute);
    const CheckedRois<scalar_t> checked(request, pooling);
    const std::vector<Tensor> none;
    const ReadableBanks<scalar_t> banks(multiplies(pooling.merge) ? inputs : none, pooling);
    pool_backward(
        checked.table(),
        banks.views,
        reader_of<scalar_t>(grad),
        grad.const_data_ptr(),
        views_of<scalar_t>(gradients, pooling));
  });
  return gradients.finish([](const auto&... arguments) { copy_bank(arguments...); });
}

}  // namespace
}  // namespace fsn_d2

STABLE_TORCH_LIBRARY_IMPL(fsn_d2, CPU, library) {
  library.impl("selective_roi_align", TORCH_BOX(&fsn_d2::selective_roi_align));
  library.impl("selective_roi_align_backward", TORCH_BOX(&fsn_d2::selective_roi_align_backward));
}
