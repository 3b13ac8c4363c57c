// From a bank in any layout and type to cells: [N, H, W, B, C] with the channels of a cell side by
// side, in the type that is computed with. And back.

#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>

#include "../banks.h"
#include "transpose.h"

namespace fsn_d2 {

// Copies a bank from planes to cells or back, or from any layout to any other.
template <typename from_t, typename to_t>
void copy_bank(
    const BankSize& size,
    const from_t* from,
    const BankStrides& from_strides,
    to_t* to,
    const BankStrides& to_strides) {
  // A row of one map is a matrix, channels by columns; written the other way round where memory
  // runs along the columns of the target.
  const bool to_planes = to_strides.column == 1;
  torch::stable::parallel_for(0, size.images * size.height, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t image = i / size.height;
      const int64_t row = i % size.height;
      for (int64_t map = 0; map < size.maps; ++map) {
        const from_t* source =
            from + image * from_strides.image + map * from_strides.map + row * from_strides.row;
        to_t* target = to + image * to_strides.image + map * to_strides.map + row * to_strides.row;
        if (to_planes) {
          transpose(
              source,
              from_strides.column,
              from_strides.channel,
              size.width,
              size.channels,
              target,
              to_strides.channel);
        } else {
          transpose(
              source,
              from_strides.channel,
              from_strides.column,
              size.channels,
              size.width,
              target,
              to_strides.column);
        }
      }
    }
  });
}

}  // namespace fsn_d2
