// selective_roi_pool and its backward on the host, as op.h for its sibling. What is out of range
// pools to NaN and adds nothing to the gradient there too.

#pragma once

#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include "../pool_arguments.h"
#include "bin_pooling.h"
#include "tables.h"

namespace fsn_d2 {

// Calls run(mode) with the mode as a constant.
template <typename Run>
void for_mode(Mode mode, const Run& run) {
  if (mode == Mode::kMax) {
    run(std::integral_constant<Mode, Mode::kMax>{});
  } else {
    run(std::integral_constant<Mode, Mode::kAvg>{});
  }
}

template <Mode kMode, typename value_t, typename Machine>
void pool_bins(
    const Machine& machine,
    const std::vector<Tensor>& inputs,
    const Request& request,
    const Pooling& pooling,
    const Tensor& output) {
  using scalar_t = typename ComputedIn<value_t>::type;
  const ReadableBanks<value_t> banks(machine, inputs, pooling);
  const DeviceTables<scalar_t> tables(machine, request, pooling, banks.memory, {});
  for_width(banks, pooling, [&](auto width) {
    constexpr int kWidth = decltype(width)::value;
    const Tiling tiling = tiling_of(pooling, sizeof(scalar_t), kWidth);
    const PoolBins<kMode, value_t, kWidth, scalar_t> kernel{
        tables.problem, tables.banks, tiling, writable_data_of<value_t>(output)};
    machine.launch(
        "pool_bins", kernel, tasks_of(pooling, tiling), shared_for_features<scalar_t>(tiling, 1));
  });
}

template <typename Machine>
Tensor selective_roi_pool(
    std::vector<Tensor> inputs,
    const Tensor& rois,
    std::optional<Tensor> levels,
    const Tensor& bank_index,
    std::vector<int64_t> output_size,
    std::vector<double> spatial_scales,
    std::string mode_name) {
  running_op = "selective_roi_pool";
  require_pair(output_size);
  const Mode mode = mode_named(mode_name);
  const PoolRequest pool_request(rois, levels, bank_index, spatial_scales);
  const Request& request = pool_request.request;
  const Pooling pooling = describe(bank_sizes(inputs), output_size[0], output_size[1], request);
  require_type_of_rois(rois);
  require_same_device(request, inputs, inputs[0]);
  const Machine machine(inputs[0]);
  Tensor output = new_output(inputs[0], pooling);
  for_float_type(output.scalar_type(), [&](auto zero) {
    for_mode(mode, [&](auto chosen) {
      pool_bins<decltype(chosen)::value, decltype(zero)>(machine, inputs, request, pooling, output);
    });
  });
  return output;
}

template <Mode kMode, typename scalar_t, typename Machine>
void add_bin_gradients(
    const Machine& machine,
    const Pooling& pooling,
    const DeviceTables<scalar_t>& tables,
    const BinGradients<scalar_t>& gradients,
    bool deterministic) {
  if (deterministic) {
    const GatherBinGradients<kMode, scalar_t> kernel{tables.problem, tables.grad_banks, gradients};
    machine.launch("gather_bin_gradients", kernel, areas_of(pooling), kernel.shared_bytes());
  } else {
    const Tiling tiling = tiling_of(pooling, 0, 1);
    const ScatterBinGradients<kMode, scalar_t> kernel{
        tables.problem, tiling, tables.grad_banks, gradients};
    machine.launch("scatter_bin_gradients", kernel, tasks_of(pooling, tiling), 0);
  }
}

template <Mode kMode, typename value_t, typename Machine>
void pool_bins_backward(
    const Machine& machine,
    const Tensor& grad_output,
    const std::vector<Tensor>& inputs,
    bool deterministic,
    const Request& request,
    const Pooling& pooling,
    const GradientBanks& grad_banks) {
  using scalar_t = typename ComputedIn<value_t>::type;
  const ReadableBanks<value_t> banks(machine, inputs, pooling);
  const DeviceTables<scalar_t> tables(
      machine, request, pooling, banks.memory, memory_of(grad_banks, pooling));
  const Tensor grad = in_order_of_output(grad_output, pooling);
  const int64_t count = pooling.rois * pooling.bins() * pooling.channels;
  const Tensor values = torch::stable::new_empty(grad, {count}, ComputedIn<value_t>::dtype);
  const Tensor winners =
      torch::stable::new_empty(grad, {kMode == Mode::kMax ? count : 0}, ScalarType::Int);
  const BinGradients<scalar_t> gradients{
      writable_data_of<scalar_t>(values), writable_data_of<int32_t>(winners)};
  for_width(banks, pooling, [&](auto width) {
    constexpr int kWidth = decltype(width)::value;
    const Tiling tiling = tiling_of(pooling, sizeof(scalar_t), kWidth);
    const PrepareBinGradients<kMode, value_t, kWidth, scalar_t> kernel{
        tables.problem, tables.banks, tables.grad_banks, tiling, data_of<value_t>(grad), gradients};
    machine.launch(
        "prepare_bin_gradients",
        kernel,
        tasks_of(pooling, tiling),
        shared_for_features<scalar_t>(tiling, 1));
  });
  add_bin_gradients<kMode>(machine, pooling, tables, gradients, deterministic);
}

template <typename Machine>
std::vector<Tensor> selective_roi_pool_backward(
    const Tensor& grad_output,
    std::vector<Tensor> inputs,
    std::vector<int64_t> input_sizes,
    bool planes,
    bool deterministic,
    const Tensor& rois,
    std::optional<Tensor> levels,
    const Tensor& bank_index,
    std::vector<double> spatial_scales,
    std::string mode_name) {
  running_op = "selective_roi_pool";
  const Mode mode = mode_named(mode_name);
  const PoolRequest pool_request(rois, levels, bank_index, spatial_scales);
  const Request& request = pool_request.request;
  const Pooling pooling = describe_pool_backward(grad_output, inputs, input_sizes, request, mode);
  require_type_of_rois(rois);
  require_same_device(request, inputs, grad_output);
  if (mode == Mode::kAvg) {
    inputs.clear();  // not read
  }
  const Machine machine(grad_output);
  GradientBanks gradients(grad_output, pooling, planes);
  for_float_type(grad_output.scalar_type(), [&](auto zero) {
    for_mode(mode, [&](auto chosen) {
      pool_bins_backward<decltype(chosen)::value, decltype(zero)>(
          machine, grad_output, inputs, deterministic, request, pooling, gradients);
    });
  });
  return gradients.finish([&](const auto&... arguments) { copy_bank(machine, arguments...); });
}

}  // namespace fsn_d2
