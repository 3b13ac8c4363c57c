// Which whole cells the bins of a RoI cover: the arithmetic of torchvision's roi_pool, for every
// device.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "device.h"

namespace fsn_d2 {

// Cells [first, end) of one axis; none where end is not larger.
struct CellRange {
  int64_t first, end;

  FSN_D2_DEVICE int64_t count() const {
    return end > first ? end - first : 0;
  }
};

// A RoI along one axis, cut into bins.
template <typename scalar_t>
struct BinAxis {
  int64_t start;      // its first cell, on the map or not
  scalar_t bin_size;  // in cells
  int64_t cells;      // of the map

  // `low` and `high`: the RoI's sides in cells. Both cells that they round to belong to it.
  FSN_D2_DEVICE static BinAxis place(scalar_t low, scalar_t high, int64_t bins, int64_t cells) {
    const int64_t first = rounded(low);
    const int64_t extent = std::max<int64_t>(rounded(high) - first + 1, 1);
    return {first, static_cast<scalar_t>(extent) / static_cast<scalar_t>(bins), cells};
  }

  // What bin number `bin` covers of the map. Neighbours can share a cell.
  FSN_D2_DEVICE CellRange range(int64_t bin) const {
    const scalar_t low = static_cast<scalar_t>(bin) * bin_size;
    const scalar_t high = static_cast<scalar_t>(bin + 1) * bin_size;
    return {
        on_the_map(static_cast<int64_t>(std::floor(low))),
        on_the_map(static_cast<int64_t>(std::ceil(high)))};
  }

 private:
  // Halves away from zero. Far outside, where no map reaches, the number does not matter, and an
  // overflow on the way there is no number at all.
  FSN_D2_DEVICE static int64_t rounded(scalar_t x) {
    constexpr auto kFar = static_cast<scalar_t>(int64_t{1} << 40);
    return static_cast<int64_t>(std::fmin(std::fmax(std::round(x), -kFar), kFar));
  }

  FSN_D2_DEVICE int64_t on_the_map(int64_t from_start) const {
    return std::min(std::max<int64_t>(start + from_start, 0), cells);
  }
};

}  // namespace fsn_d2
