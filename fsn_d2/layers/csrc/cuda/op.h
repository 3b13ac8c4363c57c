// selective_roi_align and its backward on the host: arguments checked, memory laid out, kernels
// launched. A Machine runs the kernels: launch.h has that of CUDA, the tests have one for the host.
//
// What would need a wait for the device to check, does not raise: a RoI with a batch index or level
// out of range, or with a number that is not finite, pools to NaN, and so does a bin with a bank
// index out of range. They add nothing to the gradient, and nothing is read or written out of
// place.

#pragma once

#include <optional>
#include <string>
#include <vector>

#include "backward.h"
#include "pooling.h"
#include "tables.h"

namespace fsn_d2 {

template <typename scalar_t>
int64_t shared_for_taps(const Tiling& tiling) {
  return TileTaps<scalar_t>::bytes(tiling.rows, tiling.columns);
}

template <typename value_t, typename Machine>
void pool(
    const Machine& machine,
    const std::vector<Tensor>& inputs,
    const Request& request,
    const Pooling& pooling,
    const Tensor& output) {
  using scalar_t = typename ComputedIn<value_t>::type;
  const ReadableBanks<value_t> banks(machine, inputs, pooling);
  const DeviceTables<scalar_t> tables(machine, request, pooling, banks.memory, {});
  const int64_t slots = multiplies(pooling.merge) ? 2 : 1;
  for_width(banks, pooling, [&](auto width) {
    constexpr int kWidth = decltype(width)::value;
    const Tiling tiling = tiling_of(pooling, slots * sizeof(scalar_t), kWidth);
    const int64_t taps = shared_for_taps<scalar_t>(tiling);
    const PoolRois<value_t, kWidth, scalar_t> kernel{
        {tables.problem, tables.banks}, tiling, taps, writable_data_of<value_t>(output)};
    machine.launch(
        "pool_rois",
        kernel,
        tasks_of(pooling, tiling),
        kRoiBytes<scalar_t> + taps + shared_for_features<scalar_t>(tiling, slots));
  });
}

template <typename Machine>
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
  running_op = "selective_roi_align";
  require_pair(output_size);
  const Request request{rois, levels, bank_indices, origins, spatial_scales, sampling_ratio, merge};
  const Pooling pooling = describe(bank_sizes(inputs), output_size[0], output_size[1], request);
  require_type_of_rois(rois);
  require_same_device(request, inputs, inputs[0]);
  const Machine machine(inputs[0]);
  Tensor output = new_output(inputs[0], pooling);
  for_float_type(output.scalar_type(), [&](auto zero) {
    pool<decltype(zero)>(machine, inputs, request, pooling, output);
  });
  return output;
}

template <typename scalar_t, typename Machine>
void scatter_gradients(
    const Machine& machine,
    const Pooling& pooling,
    const DeviceTables<scalar_t>& tables,
    const scalar_t* grad_slots) {
  const Tiling tiling = tiling_of(pooling, 0, 1);
  const ScatterGradients<scalar_t> kernel{tables.problem, tiling, tables.grad_banks, grad_slots};
  machine.launch(
      "scatter_gradients",
      kernel,
      tasks_of(pooling, tiling),
      kRoiBytes<scalar_t> + shared_for_taps<scalar_t>(tiling));
}

template <typename scalar_t, typename Machine>
void gather_gradients(
    const Machine& machine,
    const Pooling& pooling,
    const DeviceTables<scalar_t>& tables,
    const scalar_t* grad_slots) {
  const Tiling tiling = tiling_of(pooling, 0, 1);
  const GatherGradients<scalar_t> kernel{tables.problem, tiling, tables.grad_banks, grad_slots};
  machine.launch("gather_gradients", kernel, areas_of(pooling), kernel.shared_bytes(tiling));
}

template <typename value_t, typename Machine>
void pool_backward(
    const Machine& machine,
    const Tensor& grad_output,
    const std::vector<Tensor>& inputs,
    bool deterministic,
    const Request& request,
    const Pooling& pooling,
    const GradientBanks& gradients) {
  using scalar_t = typename ComputedIn<value_t>::type;
  const ReadableBanks<value_t> banks(machine, inputs, pooling);
  const DeviceTables<scalar_t> tables(
      machine, request, pooling, banks.memory, memory_of(gradients, pooling));
  const int64_t all_slots = pooling.slots();
  const Tensor grad = in_order_of_output(grad_output, pooling);
  const Tensor grad_slots = torch::stable::new_empty(
      grad,
      {pooling.rois, pooling.bins(), all_slots, pooling.channels},
      ComputedIn<value_t>::dtype);
  auto* slots = writable_data_of<scalar_t>(grad_slots);
  const int64_t slots_per_group = multiplies(pooling.merge) ? 2 : 1;
  for_width(banks, pooling, [&](auto width) {
    constexpr int kWidth = decltype(width)::value;
    const Tiling tiling = tiling_of(pooling, slots_per_group * sizeof(scalar_t), kWidth);
    const int64_t taps = shared_for_taps<scalar_t>(tiling);
    const PrepareGradients<value_t, kWidth, scalar_t> kernel{
        {tables.problem, tables.banks}, tiling, taps, data_of<value_t>(grad), slots};
    machine.launch(
        "prepare_gradients",
        kernel,
        tasks_of(pooling, tiling),
        kRoiBytes<scalar_t> + taps + shared_for_features<scalar_t>(tiling, slots_per_group));
  });
  if (deterministic) {
    gather_gradients(machine, pooling, tables, static_cast<const scalar_t*>(slots));
  } else {
    scatter_gradients(machine, pooling, tables, static_cast<const scalar_t*>(slots));
  }
}

template <typename Machine>
std::vector<Tensor> selective_roi_align_backward(
    const Tensor& grad_output,
    std::vector<Tensor> inputs,
    std::vector<int64_t> input_sizes,
    bool planes,
    bool deterministic,
    const Tensor& rois,
    std::optional<Tensor> levels,
    std::vector<Tensor> bank_indices,
    std::vector<int64_t> origins,
    std::vector<double> spatial_scales,
    int64_t sampling_ratio,
    std::string merge) {
  running_op = "selective_roi_align";
  const Request request{rois, levels, bank_indices, origins, spatial_scales, sampling_ratio, merge};
  const Pooling pooling = describe_backward(grad_output, inputs, input_sizes, request);
  require_type_of_rois(rois);
  require_same_device(request, inputs, grad_output);
  if (!multiplies(pooling.merge)) {
    inputs.clear();
  }
  const Machine machine(grad_output);
  GradientBanks gradients(grad_output, pooling, planes);
  for_float_type(grad_output.scalar_type(), [&](auto zero) {
    pool_backward<decltype(zero)>(
        machine, grad_output, inputs, deterministic, request, pooling, gradients);
  });
  return gradients.finish([&](const auto&... arguments) { copy_bank(machine, arguments...); });
}

}  // namespace fsn_d2
