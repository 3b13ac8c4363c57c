// Banks in memory, whatever the device: their types, layouts and gradients.

#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <array>
#include <cstdint>
#include <vector>

#include "arguments.h"

namespace fsn_d2 {

// Calls run(T{}) with the C++ type of a floating dtype.
template <typename Run>
void for_float_type(ScalarType type, const Run& run) {
  switch (type) {
    case ScalarType::Double:
      return run(double{});
    case ScalarType::Half:
      return run(c10::Half{});
    case ScalarType::BFloat16:
      return run(c10::BFloat16{});
    default:
      return run(float{});
  }
}

// float64 is computed in float64, everything else in float32.
template <typename value_t>
struct ComputedIn {
  using type = float;
  static constexpr ScalarType dtype = ScalarType::Float;
};

template <>
struct ComputedIn<double> {
  using type = double;
  static constexpr ScalarType dtype = ScalarType::Double;
};

template <typename value_t>
const value_t* data_of(const Tensor& tensor) {
  return static_cast<const value_t*>(tensor.const_data_ptr());
}

template <typename value_t>
value_t* writable_data_of(const Tensor& tensor) {
  return static_cast<value_t*>(tensor.mutable_data_ptr());
}

// Strides of a bank [N, B, C, H, W].
struct BankStrides {
  int64_t image, map, channel, row, column;
};

inline BankStrides strides_of(const Tensor& bank) {
  return {bank.stride(0), bank.stride(1), bank.stride(2), bank.stride(3), bank.stride(4)};
}

// Strides of cells [N, H, W, B, C] without gaps.
inline BankStrides cell_strides(const BankSize& size) {
  const int64_t cell = size.maps * size.channels;
  return {size.height * size.width * cell, size.channels, 1, size.width * cell, cell};
}

// Strides of cells map by map, [N, B, H, W, C], without gaps: what a bin reads lies closer
// together.
inline BankStrides map_strides(const BankSize& size) {
  const int64_t map = size.height * size.width * size.channels;
  return {size.maps * map, map, 1, size.width * size.channels, size.channels};
}

// Strides of [N, B, C, H, W] without gaps.
inline BankStrides plane_strides(const BankSize& size) {
  const int64_t plane = size.height * size.width;
  return {size.maps * size.channels * plane, size.channels * plane, plane, size.width, 1};
}

template <size_t kDims>
Tensor permute(const Tensor& tensor, const std::array<int64_t, kDims>& order) {
  std::array<StableIValue, 2> stack{
      torch::stable::detail::from(tensor),
      torch::stable::detail::from(
          torch::headeronly::IntHeaderOnlyArrayRef(order.data(), order.size()))};
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::permute", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

inline Tensor cells_to_bank(const Tensor& cells) {
  return permute<5>(cells, {0, 3, 4, 1, 2});
}

// The op's output, [K, output channels, PH, PW].
inline Tensor new_output(const Tensor& like, const Pooling& pooling) {
  const int64_t channels = pooling.output_channels();
  if (pooling.channels_last()) {
    const Tensor bins = torch::stable::new_empty(
        like, {pooling.rois, pooling.bin_rows, pooling.bin_columns, channels});
    return permute<4>(bins, {0, 3, 1, 2});
  }
  return torch::stable::new_empty(
      like, {pooling.rois, channels, pooling.bin_rows, pooling.bin_columns});
}

// A gradient of the output, in memory as the output is.
inline Tensor in_order_of_output(const Tensor& grad_output, const Pooling& pooling) {
  return torch::stable::contiguous(
      pooling.channels_last() ? permute<4>(grad_output, {0, 2, 3, 1}) : grad_output);
}

// One gradient per input, added up in cells of the type that is computed with: [N, H, W, B, C], or
// map by map where they become planes.
class GradientBanks {
 public:
  GradientBanks(const Tensor& like, const Pooling& pooling, bool planes)
      : pooling_(pooling), like_(like), planes_(planes) {
    const ScalarType type =
        like.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
    for (const BankSize& size : pooling.banks) {
      cells_.push_back(
          torch::stable::new_zeros(
              like, {size.images, size.height, size.width, size.maps, size.channels}, type));
    }
  }

  const std::vector<Tensor>& cells() const {
    return cells_;
  }

  BankStrides strides(size_t i) const {
    return planes_ ? map_strides(pooling_.banks[i]) : cell_strides(pooling_.banks[i]);
  }

  // The gradients [N, B, C, H, W] in the type of `like`, in the layout of planes or of cells.
  // copy(size, from, from_strides, to, to_strides) changes layout and type. Frees each bank's cells
  // as soon as its planes are written.
  template <typename Copy>
  std::vector<Tensor> finish(const Copy& copy) {
    std::vector<Tensor> gradients;
    for (size_t i = 0; i < cells_.size(); ++i) {
      gradients.push_back(
          planes_ ? to_planes(cells_[i], pooling_.banks[i], copy)
                  : cells_to_bank(torch::stable::to(cells_[i], like_.scalar_type())));
      cells_[i] = Tensor();
    }
    return gradients;
  }

 private:
  template <typename Copy>
  Tensor to_planes(const Tensor& cells, const BankSize& size, const Copy& copy) const {
    Tensor planes = torch::stable::new_empty(
        like_, {size.images, size.maps, size.channels, size.height, size.width});
    for_float_type(planes.scalar_type(), [&](auto zero) {
      using value_t = decltype(zero);
      using scalar_t = typename ComputedIn<value_t>::type;
      copy(
          size,
          data_of<scalar_t>(cells),
          map_strides(size),
          writable_data_of<value_t>(planes),
          plane_strides(size));
    });
    return planes;
  }

  const Pooling& pooling_;
  const Tensor& like_;
  const bool planes_;
  std::vector<Tensor> cells_;
};

}  // namespace fsn_d2
