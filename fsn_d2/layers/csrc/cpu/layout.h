// From a bank in any layout and type to cells: [N, H, W, B, C] with the channels of a cell side by
// side, in the type that is computed with. And back.

#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <array>
#include <cstdint>

#include "../arguments.h"

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

// Strides of [N, B, C, H, W] without gaps.
inline BankStrides plane_strides(const BankSize& size) {
  const int64_t plane = size.height * size.width;
  return {size.maps * size.channels * plane, size.channels * plane, plane, size.width, 1};
}

// Copies a bank from one layout and type to another. Blocks of channels by columns, so that both
// sides stay in the first cache whichever of the two runs along memory.
template <typename from_t, typename to_t>
void copy_bank(
    const BankSize& size,
    const from_t* from,
    const BankStrides& from_strides,
    to_t* to,
    const BankStrides& to_strides) {
  constexpr int64_t kBlock = 16;
  torch::stable::parallel_for(0, size.images * size.height, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t image = i / size.height;
      const int64_t row = i % size.height;
      for (int64_t map = 0; map < size.maps; ++map) {
        const from_t* source =
            from + image * from_strides.image + map * from_strides.map + row * from_strides.row;
        to_t* target = to + image * to_strides.image + map * to_strides.map + row * to_strides.row;
        for (int64_t c0 = 0; c0 < size.channels; c0 += kBlock) {
          const int64_t c1 = std::min(c0 + kBlock, size.channels);
          for (int64_t x0 = 0; x0 < size.width; x0 += kBlock) {
            const int64_t x1 = std::min(x0 + kBlock, size.width);
            for (int64_t x = x0; x < x1; ++x) {
              for (int64_t c = c0; c < c1; ++c) {
                target[c * to_strides.channel + x * to_strides.column] =
                    static_cast<to_t>(source[c * from_strides.channel + x * from_strides.column]);
              }
            }
          }
        }
      }
    }
  });
}

}  // namespace fsn_d2
