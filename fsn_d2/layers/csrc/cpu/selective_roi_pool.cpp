// selective_roi_pool on the CPU: forward and backward.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "../banks.h"
#include "../pool_arguments.h"
#include "bank_views.h"
#include "bin_gradients.h"
#include "bin_pooling.h"
#include "capability.h"
#include "layout.h"
#include "roi_table.h"
#include "roi_values.h"
#include "row_sharing.h"

namespace fsn_d2 {
namespace {

constexpr const char* kName = "selective_roi_pool";

template <typename scalar_t>
void pool(
    const RoiTable<scalar_t>& table,
    const std::vector<BankView<const scalar_t>>& banks,
    Mode mode,
    const RoiWriter<scalar_t>& writer) {
  torch::stable::parallel_for(0, table.pooling.rois, 1, [&](int64_t begin, int64_t end) {
    if (mode == Mode::kMax) {
      run_on_this_machine<PoolBins<Maximum>>(table, banks, writer, begin, end);
    } else {
      run_on_this_machine<PoolBins<Mean>>(table, banks, writer, begin, end);
    }
  });
}

Tensor selective_roi_pool(
    std::vector<Tensor> inputs,
    const Tensor& rois,
    std::optional<Tensor> levels,
    const Tensor& bank_index,
    std::vector<int64_t> output_size,
    std::vector<double> spatial_scales,
    std::string mode_name) {
  running_op = kName;
  require_pair(output_size);
  const Mode mode = mode_named(mode_name);
  const PoolRequest pool_request(rois, levels, bank_index, spatial_scales);
  const Request& request = pool_request.request;
  const Pooling pooling = describe(bank_sizes(inputs), output_size[0], output_size[1], request);
  require_type_of_rois(rois);
  require_same_device(request, inputs, inputs[0]);
  Tensor output = new_output(inputs[0], pooling);
  for_compute_type(output.scalar_type(), [&](auto compute) {
    using scalar_t = decltype(compute);
    const CheckedRois<scalar_t> checked(request, pooling);
    const ReadableBanks<scalar_t> banks(inputs, pooling);
    pool(checked.table(), banks.views, mode, writer_to<scalar_t>(output, pooling));
  });
  return output;
}

// Adds, per row of the maps, the cells in which a RoI's bins meet it.
template <typename scalar_t>
void weigh_rows(
    const BinnedRoi<scalar_t>& roi,
    const Pooling& pooling,
    const std::vector<int64_t>& first_rows,
    std::vector<int64_t>& work) {
  const int64_t top = first_rows[roi.level] + roi.image * pooling.levels[roi.level].height;
  int64_t columns = 0;
  for (const CellRange& range : roi.columns) {
    columns += range.count();
  }
  for (const CellRange& range : roi.rows) {
    for (int64_t row = range.first; row < range.end; ++row) {
      work[top + row] += columns;
    }
  }
}

template <typename scalar_t>
void pool_backward(
    const RoiTable<scalar_t>& table,
    const std::vector<BankView<const scalar_t>>& banks,
    Mode mode,
    ReadRoi<scalar_t> read,
    const void* grad_output,
    const std::vector<BankView<scalar_t>>& grad_banks) {
  const Pooling& pooling = table.pooling;
  const std::vector<int64_t> first_rows = first_rows_of_levels(pooling);
  std::vector<BinGradient<scalar_t>> chunk(std::min(kChunk, pooling.rois));
  add_by_rows(
      pooling,
      [&](int64_t first, int64_t begin, int64_t end) {
        run_on_this_machine<PrepareBinGradients>(
            table, banks, read, grad_output, &chunk, mode, first, begin, end);
      },
      [&](int64_t size, std::vector<int64_t>& work) {
        for (int64_t n = 0; n < size; ++n) {
          weigh_rows(chunk[n].roi, pooling, first_rows, work);
        }
      },
      [&](int64_t size, int64_t begin, int64_t end) {
        run_on_this_machine<ScatterBinGradients>(
            table, grad_banks, chunk, mode, size, first_rows, begin, end);
      });
}

std::vector<Tensor> selective_roi_pool_backward(
    const Tensor& grad_output,
    std::vector<Tensor> inputs,
    std::vector<int64_t> input_sizes,
    bool planes,
    bool,  // deterministic: always is
    const Tensor& rois,
    std::optional<Tensor> levels,
    const Tensor& bank_index,
    std::vector<double> spatial_scales,
    std::string mode_name) {
  running_op = kName;
  const Mode mode = mode_named(mode_name);
  const PoolRequest pool_request(rois, levels, bank_index, spatial_scales);
  const Request& request = pool_request.request;
  const Pooling pooling = describe_pool_backward(grad_output, inputs, input_sizes, request, mode);
  require_type_of_rois(rois);
  require_same_device(request, inputs, grad_output);
  if (mode == Mode::kAvg) {
    inputs.clear();  // not read
  }
  GradientBanks gradients(grad_output, pooling, planes);
  const Tensor grad = in_order_of_output(grad_output, pooling);
  for_compute_type(grad_output.scalar_type(), [&](auto compute) {
    using scalar_t = decltype(compute);
    const CheckedRois<scalar_t> checked(request, pooling);
    const ReadableBanks<scalar_t> banks(inputs, pooling);
    pool_backward(
        checked.table(),
        banks.views,
        mode,
        reader_of<scalar_t>(grad),
        grad.const_data_ptr(),
        views_of<scalar_t>(gradients, pooling));
  });
  return gradients.finish([](const auto&... arguments) { copy_bank(arguments...); });
}

}  // namespace
}  // namespace fsn_d2

STABLE_TORCH_LIBRARY_IMPL(fsn_d2, CPU, library) {
  library.impl("selective_roi_pool", TORCH_BOX(&fsn_d2::selective_roi_pool));
  library.impl("selective_roi_pool_backward", TORCH_BOX(&fsn_d2::selective_roi_pool_backward));
}
