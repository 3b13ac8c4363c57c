// The RoIs of a call, checked and in the form of the kernels, and the order of their visits.

#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "../arguments.h"
#include "../banks.h"

namespace fsn_d2 {

// Which map of a source each bin of each RoI reads.
struct MapIndex {
  const int64_t* values;
  std::array<int64_t, 3> strides;

  int64_t at(int64_t roi, int64_t bin_row, int64_t bin_column) const {
    return values[roi * strides[0] + bin_row * strides[1] + bin_column * strides[2]];
  }
};

// Everything that the kernels read apart from the banks' values.
template <typename scalar_t>
struct RoiTable {
  const Pooling& pooling;
  const scalar_t* rois;
  const int64_t* levels;       // null: all on level 0
  std::vector<MapIndex> maps;  // per source
  std::vector<int64_t> order;  // RoIs in the order in which they are visited
};

// The bits of a byte with a gap after each.
inline uint64_t spread_bits(uint64_t byte) {
  byte = (byte | (byte << 4)) & 0x0F0F;
  byte = (byte | (byte << 2)) & 0x3333;
  return (byte | (byte << 1)) & 0x5555;
}

// RoIs by level and image, and then along a Z-order curve through their centres: proposals come by
// score, and what one RoI has brought into the cache is used by its neighbours.
template <typename scalar_t>
std::vector<int64_t> spatial_order(const RoiTable<scalar_t>& table) {
  const Pooling& pooling = table.pooling;
  std::vector<uint64_t> keys(pooling.rois);  // map, place on the curve, RoI
  for (int64_t k = 0; k < pooling.rois; ++k) {
    const scalar_t* roi = table.rois + k * 5;
    const int64_t number = table.levels ? table.levels[k] : 0;
    const Level& level = pooling.levels[number];
    const auto place = [&](scalar_t low, scalar_t high, int64_t cells) {
      const double center = 0.5 * (static_cast<double>(low) + static_cast<double>(high));
      const double part = center * level.scale / static_cast<double>(std::max<int64_t>(cells, 1));
      return spread_bits(static_cast<uint64_t>(std::clamp(part * 256.0, 0.0, 255.0)));
    };
    const auto map = static_cast<uint64_t>(number * pooling.images + static_cast<int64_t>(roi[0]));
    const uint64_t curve =
        place(roi[2], roi[4], level.height) << 1 | place(roi[1], roi[3], level.width);
    keys[k] = map << 48 | curve << 32 | static_cast<uint64_t>(k);
  }
  std::sort(keys.begin(), keys.end());
  std::vector<int64_t> order(keys.size());
  for (size_t i = 0; i < keys.size(); ++i) {
    order[i] = static_cast<int64_t>(keys[i] & 0xFFFFFFFF);
  }
  return order;
}

// The request's tensors in the form of the kernels, checked, with what keeps them alive.
template <typename scalar_t>
class CheckedRois {
 public:
  CheckedRois(const Request& request, const Pooling& pooling)
      : rois_(torch::stable::contiguous(torch::stable::to(request.rois, kType))),
        table_{pooling, data_of<scalar_t>(rois_), nullptr, {}, {}} {
    check_rois(pooling);
    require_levels(request.levels, pooling);
    if (request.levels.has_value()) {
      levels_ = as_int64(*request.levels, "levels");
      table_.levels = data_of<int64_t>(levels_);
      check_range(levels_, static_cast<int64_t>(pooling.levels.size()), "levels", "levels");
    }
    for (size_t s = 0; s < request.bank_indices.size(); ++s) {
      indices_.push_back(as_int64(request.bank_indices[s], "bank_index"));
      const Tensor& index = indices_.back();
      table_.maps.push_back({data_of<int64_t>(index), broadcast_strides(index, pooling)});
      check_range(index, pooling.bank(s, 0).maps, "bank_index", "maps in the bank");
    }
    table_.order = spatial_order(table_);
  }

  const RoiTable<scalar_t>& table() const {
    return table_;
  }

 private:
  static constexpr ScalarType kType =
      std::is_same_v<scalar_t, double> ? ScalarType::Double : ScalarType::Float;

  void check_rois(const Pooling& pooling) const {
    for (int64_t k = 0; k < pooling.rois; ++k) {
      const scalar_t* roi = table_.rois + k * 5;
      require(
          roi[0] >= 0 && roi[0] < static_cast<scalar_t>(pooling.images),
          "rois[",
          k,
          ", 0], the batch index, must lie in [0, ",
          pooling.images,
          "), got ",
          roi[0]);
      for (int64_t i = 1; i < 5; ++i) {
        require(std::isfinite(roi[i]), "rois[", k, ", ", i, "] must be finite, got ", roi[i]);
      }
    }
  }

  static void check_range(const Tensor& values, int64_t limit, const char* name, const char* of) {
    const auto* value = data_of<int64_t>(values);
    for (int64_t i = 0; i < values.numel(); ++i) {
      require(
          value[i] >= 0 && value[i] < limit,
          name,
          " must lie in [0, ",
          limit,
          "), the number of ",
          of,
          ", got ",
          value[i]);
    }
  }

  Tensor rois_;
  Tensor levels_;
  std::vector<Tensor> indices_;
  RoiTable<scalar_t> table_;
};

}  // namespace fsn_d2
