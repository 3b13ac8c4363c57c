// Banks as the kernels read and write them.

#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <type_traits>
#include <utility>
#include <vector>

#include "../arguments.h"
#include "../banks.h"
#include "layout.h"

namespace fsn_d2 {

// A bank in memory: the channels of a cell side by side, everything else anywhere.
template <typename value_t>
struct BankView {
  value_t* data;
  int64_t image_stride, row_stride, column_stride;
  std::vector<int64_t> map_offset;  // where the sampled extent of each map starts
};

template <typename value_t>
BankView<value_t> view(
    value_t* data, const BankStrides& strides, const std::vector<Origin>& origins) {
  BankView<value_t> bank{data, strides.image, strides.row, strides.column, {}};
  for (size_t map = 0; map < origins.size(); ++map) {
    bank.map_offset.push_back(
        static_cast<int64_t>(map) * strides.map + origins[map].row * strides.row +
        origins[map].column * strides.column);
  }
  return bank;
}

// The banks' values as the kernels read them: in place where a cell's channels lie side by side in
// the type that is computed with, else copied so. Converting the layout costs less than reading
// planes in place: a plane gives one channel per cache line.
template <typename scalar_t>
class ReadableBanks {
 public:
  ReadableBanks(const std::vector<Tensor>& inputs, const Pooling& pooling) {
    const size_t levels = pooling.levels.size();
    for (size_t i = 0; i < inputs.size(); ++i) {
      const Tensor& input = inputs[i];
      const BankSize& size = pooling.banks[i];
      const std::vector<Origin>& origins = pooling.origins[i / levels];
      const bool readable =
          input.scalar_type() == type() && (size.channels <= 1 || input.stride(2) == 1);
      if (readable) {
        views.push_back(view(data_of<scalar_t>(input), strides_of(input), origins));
        continue;
      }
      Tensor cells = torch::stable::new_empty(input, {size.numel()}, type());
      auto* target = static_cast<scalar_t*>(cells.mutable_data_ptr());
      for_float_type(input.scalar_type(), [&](auto zero) {
        copy_bank(
            size, data_of<decltype(zero)>(input), strides_of(input), target, map_strides(size));
      });
      views.push_back(view<const scalar_t>(target, map_strides(size), origins));
      copies_.push_back(std::move(cells));
    }
  }

  static constexpr ScalarType type() {
    return std::is_same_v<scalar_t, double> ? ScalarType::Double : ScalarType::Float;
  }

  std::vector<BankView<const scalar_t>> views;

 private:
  std::vector<Tensor> copies_;
};

template <typename scalar_t>
std::vector<BankView<scalar_t>> views_of(const GradientBanks& gradients, const Pooling& pooling) {
  std::vector<BankView<scalar_t>> views;
  for (size_t i = 0; i < gradients.cells().size(); ++i) {
    views.push_back(view(
        writable_data_of<scalar_t>(gradients.cells()[i]),
        gradients.strides(i),
        pooling.origins[i / pooling.levels.size()]));
  }
  return views;
}

// float64 is computed in float64, everything else in float32.
template <typename Run>
void for_compute_type(ScalarType type, const Run& run) {
  if (type == ScalarType::Double) {
    run(double{});
  } else {
    run(float{});
  }
}

}  // namespace fsn_d2
