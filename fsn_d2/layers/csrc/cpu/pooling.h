// The kernels: what is done for one RoI, and in what order for many.

#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "../arguments.h"
#include "roi_geometry.h"
#include "transpose.h"
#include "vectors.h"

namespace fsn_d2 {

// A bank in memory: the channels of a cell side by side, everything else anywhere.
template <typename value_t>
struct BankView {
  value_t* data;
  int64_t image_stride, row_stride, column_stride;
  std::vector<int64_t> map_offset;  // where the sampled extent of each map starts
};

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

inline uint64_t spread_bits(uint32_t value) {
  uint64_t x = value & 0xFFFF;
  x = (x | (x << 8)) & 0x00FF00FF;
  x = (x | (x << 4)) & 0x0F0F0F0F;
  x = (x | (x << 2)) & 0x33333333;
  x = (x | (x << 1)) & 0x55555555;
  return x;
}

// RoIs by level and image, and then along a Z-order curve through their centres: proposals come by
// score, and what one RoI has brought into the cache is used by its neighbours.
template <typename scalar_t>
std::vector<int64_t> spatial_order(const RoiTable<scalar_t>& table) {
  const Pooling& pooling = table.pooling;
  std::vector<std::pair<uint64_t, int64_t>> keys(pooling.rois);
  for (int64_t k = 0; k < pooling.rois; ++k) {
    const scalar_t* roi = table.rois + k * 5;
    const int64_t level = table.levels ? table.levels[k] : 0;
    const double half = 0.5 * pooling.levels[level].scale;
    const auto cell = [&](scalar_t a, scalar_t b) {
      return static_cast<uint32_t>(
          std::clamp((static_cast<double>(a) + static_cast<double>(b)) * half, 0.0, 65535.0));
    };
    const uint64_t map = level * pooling.images + static_cast<int64_t>(roi[0]);
    keys[k] = {
        map << 32 | spread_bits(cell(roi[2], roi[4])) << 1 | spread_bits(cell(roi[1], roi[3])), k};
  }
  std::sort(keys.begin(), keys.end());
  std::vector<int64_t> order;
  order.reserve(keys.size());
  for (const auto& key : keys) {
    order.push_back(key.second);
  }
  return order;
}

// One RoI placed on its level: the weights of its bins along both axes.
template <typename scalar_t>
struct PlacedRoi {
  int64_t number = 0;
  int64_t image = 0;
  int64_t level = 0;
  AxisTaps<scalar_t> rows;
  AxisTaps<scalar_t> columns;
  scalar_t share = 0;  // 1 / number of samples in a bin

  void place(const RoiTable<scalar_t>& table, int64_t k) {
    const Pooling& pooling = table.pooling;
    number = k;
    const scalar_t* roi = table.rois + k * 5;
    image = static_cast<int64_t>(roi[0]);
    level = table.levels ? table.levels[k] : 0;
    const Level& map = pooling.levels[level];
    const auto scale = static_cast<scalar_t>(map.scale);
    // Half a pixel back: cell (0, 0) has its centre at (0.5, 0.5) in continuous coordinates.
    const scalar_t x1 = roi[1] * scale - scalar_t(0.5);
    const scalar_t y1 = roi[2] * scale - scalar_t(0.5);
    const scalar_t x2 = roi[3] * scale - scalar_t(0.5);
    const scalar_t y2 = roi[4] * scale - scalar_t(0.5);
    rows.compute(y1, y2 - y1, pooling.bin_rows, pooling.sampling_ratio, map.height);
    columns.compute(x1, x2 - x1, pooling.bin_columns, pooling.sampling_ratio, map.width);
    const auto samples = static_cast<double>(rows.grid()) * static_cast<double>(columns.grid());
    share = static_cast<scalar_t>(1.0 / std::max(samples, 1.0));
  }
};

// Pools one source's panel of channels for all bins of a RoI. `bins`: [PH * PW, pitch].
template <typename panel_t, typename scalar_t>
FSN_D2_INLINE void pool_panel(
    const Pooling& pooling,
    const PlacedRoi<scalar_t>& roi,
    const BankView<const scalar_t>& bank,
    const MapIndex& maps,
    bool add,
    int64_t channel,
    scalar_t* bins,
    int64_t pitch) {
  using vector_t = typename panel_t::vector_t;
  const scalar_t* image = bank.data + roi.image * bank.image_stride + channel;
  const int64_t row_stride = bank.row_stride;
  const int64_t column_stride = bank.column_stride;
  const scalar_t share = roi.share;
  const bool prefetch = bank.map_offset.size() > 1;
  for (int64_t i = 0; i < pooling.bin_rows; ++i) {
    const auto* first_row = roi.rows.begin(i);
    const auto* last_row = roi.rows.end(i);
    for (int64_t j = 0; j < pooling.bin_columns; ++j, bins += pitch) {
      const scalar_t* map = image + bank.map_offset[maps.at(roi.number, i, j)];
      const auto* first_column = roi.columns.begin(j);
      const auto* last_column = roi.columns.end(j);
      if (prefetch && j + 1 < pooling.bin_columns) {
        const scalar_t* next = image + bank.map_offset[maps.at(roi.number, i, j + 1)];
        const auto* next_end = roi.columns.end(j + 1);
        for (const auto* row = first_row; row != last_row; ++row) {
          const scalar_t* line = next + row->cell * row_stride;
          for (const auto* column = last_column; column != next_end; ++column) {
            const char* cell = reinterpret_cast<const char*>(line + column->cell * column_stride);
            for (size_t byte = 0; byte < sizeof(vector_t) * panel_t::count; byte += 64) {
              __builtin_prefetch(cell + byte);
            }
          }
        }
      }
      vector_t sums[panel_t::count];
      FSN_D2_UNROLL for (int p = 0; p < panel_t::count; ++p) {
        if (add) {
          load(bins + p * panel_t::lanes, sums[p]);
        } else {
          sums[p] = vector_t{};
        }
      }
      for (const auto* row = first_row; row != last_row; ++row) {
        const scalar_t* line = map + row->cell * row_stride;
        const scalar_t row_weight = row->weight * share;
        for (const auto* column = first_column; column != last_column; ++column) {
          const scalar_t* cell = line + column->cell * column_stride;
          const scalar_t weight = row_weight * column->weight;
          FSN_D2_UNROLL for (int p = 0; p < panel_t::count; ++p) {
            vector_t values;
            load(cell + p * panel_t::lanes, values);
            sums[p] += values * weight;
          }
        }
      }
      FSN_D2_UNROLL for (int p = 0; p < panel_t::count; ++p) {
        store(sums[p], bins + p * panel_t::lanes);
      }
    }
  }
}

// Pools every source of a RoI. `bins`: [PH * PW, slots * C].
template <int kBytes, typename scalar_t>
FSN_D2_INLINE void pool_sources(
    const RoiTable<scalar_t>& table,
    const std::vector<BankView<const scalar_t>>& banks,
    const PlacedRoi<scalar_t>& roi,
    scalar_t* bins) {
  const Pooling& pooling = table.pooling;
  const int64_t pitch = pooling.slots() * pooling.channels;
  for (int64_t source = 0; source < pooling.sources; ++source) {
    const int64_t slot = pooling.slot_of(source);
    const bool add = source > 0 && slot == pooling.slot_of(source - 1);
    const auto& bank = banks[source * pooling.levels.size() + roi.level];
    for_each_panel<scalar_t, kBytes / sizeof(scalar_t)>(
        0, pooling.channels, [&](auto panel, int64_t channel) FSN_D2_INLINE_LAMBDA {
          pool_panel<decltype(panel)>(
              pooling,
              roi,
              bank,
              table.maps[source],
              add,
              channel,
              bins + slot * pooling.channels + channel,
              pitch);
        });
  }
}

// In place on [PH * PW, 2 * C]: the RoI feature becomes the merged one.
template <typename scalar_t>
FSN_D2_INLINE void multiply_bins(const Pooling& pooling, scalar_t* bins) {
  const int64_t channels = pooling.channels;
  const bool relu = pooling.merge == Merge::kMultiplyRelu;
  for (int64_t bin = 0; bin < pooling.bins(); ++bin, bins += 2 * channels) {
    for (int64_t c = 0; c < channels; ++c) {
      const scalar_t factor = bins[channels + c];
      bins[c] *= relu && factor < scalar_t(0) ? scalar_t(0) : factor;
    }
  }
}

// RoIs [begin, end): pooled, merged and written to output [K, output channels, PH, PW].
struct PoolRois {
  template <int kBytes, typename scalar_t, typename output_t>
  FSN_D2_INLINE static void run(
      const RoiTable<scalar_t>& table,
      const std::vector<BankView<const scalar_t>>& banks,
      output_t* const& output,
      int64_t begin,
      int64_t end) {
    const Pooling& pooling = table.pooling;
    const int64_t pitch = pooling.slots() * pooling.channels;
    std::vector<scalar_t> bins(pooling.bins() * pitch);
    PlacedRoi<scalar_t> roi;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t k = table.order[i];
      roi.place(table, k);
      pool_sources<kBytes>(table, banks, roi, bins.data());
      if (multiplies(pooling.merge)) {
        multiply_bins(pooling, bins.data());
      }
      transpose(
          bins.data(),
          pitch,
          1,
          pooling.bins(),
          pooling.output_channels(),
          output + k * pooling.output_channels() * pooling.bins(),
          pooling.bins());
    }
  }
};

// --- backward
// -------------------------------------------------------------------------------------

// A RoI on its way back: where it lies, and the gradient of its slots, [PH * PW, slots * C].
template <typename scalar_t>
struct RoiGradient {
  PlacedRoi<scalar_t> roi;
  std::vector<scalar_t> bins;
};

// RoIs [begin, end) of a chunk that starts at RoI `first`: from the gradient of the output to that
// of the slots. What a product needs of the pooled features is pooled again rather than kept.
struct PrepareGradients {
  template <int kBytes, typename scalar_t, typename output_t>
  FSN_D2_INLINE static void run(
      const RoiTable<scalar_t>& table,
      const std::vector<BankView<const scalar_t>>& banks,
      const output_t* const& grad_output,
      std::vector<RoiGradient<scalar_t>>* const& chunk,
      int64_t first,
      int64_t begin,
      int64_t end) {
    const Pooling& pooling = table.pooling;
    const int64_t channels = pooling.channels;
    const int64_t pitch = pooling.slots() * channels;
    std::vector<scalar_t> pooled(multiplies(pooling.merge) ? pooling.bins() * pitch : 0);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t k = table.order[i];
      RoiGradient<scalar_t>& gradient = (*chunk)[i - first];
      gradient.roi.place(table, k);
      gradient.bins.resize(pooling.bins() * pitch);
      transpose(
          grad_output + k * pooling.output_channels() * pooling.bins(),
          pooling.bins(),
          1,
          pooling.output_channels(),
          pooling.bins(),
          gradient.bins.data(),
          pitch);
      if (multiplies(pooling.merge)) {
        pool_sources<kBytes>(table, banks, gradient.roi, pooled.data());
        multiply_gradient(pooling, pooled.data(), gradient.bins.data());
      }
    }
  }

  // In place: the gradient of roi * factor(attention) becomes that of roi and of attention.
  template <typename scalar_t>
  FSN_D2_INLINE static void multiply_gradient(
      const Pooling& pooling, const scalar_t* pooled, scalar_t* gradient) {
    const int64_t channels = pooling.channels;
    const bool relu = pooling.merge == Merge::kMultiplyRelu;
    for (int64_t bin = 0; bin < pooling.bins(); ++bin) {
      for (int64_t c = 0; c < channels; ++c) {
        const scalar_t grad = gradient[c];
        const scalar_t attention = pooled[channels + c];
        const bool off = relu && !(attention > scalar_t(0));
        gradient[c] = off ? scalar_t(0) : grad * attention;
        gradient[channels + c] = off ? scalar_t(0) : grad * pooled[c];
      }
      pooled += 2 * channels;
      gradient += 2 * channels;
    }
  }
};

// Adds one source's panel of channels of all bins to rows [first_row, last_row) of the map.
template <typename panel_t, typename scalar_t>
FSN_D2_INLINE void scatter_panel(
    const Pooling& pooling,
    const PlacedRoi<scalar_t>& roi,
    const BankView<scalar_t>& bank,
    const MapIndex& maps,
    int64_t first_row,
    int64_t last_row,
    int64_t channel,
    const scalar_t* bins,
    int64_t pitch) {
  using vector_t = typename panel_t::vector_t;
  scalar_t* image = bank.data + roi.image * bank.image_stride + channel;
  const int64_t row_stride = bank.row_stride;
  const int64_t column_stride = bank.column_stride;
  const scalar_t share = roi.share;
  for (int64_t i = 0; i < pooling.bin_rows; ++i) {
    auto rows_begin = roi.rows.begin(i);
    auto rows_end = roi.rows.end(i);
    while (rows_begin != rows_end && rows_begin->cell < first_row) {
      ++rows_begin;
    }
    while (rows_begin != rows_end && (rows_end - 1)->cell >= last_row) {
      --rows_end;
    }
    if (rows_begin == rows_end) {
      continue;
    }
    const scalar_t* bin = bins + i * pooling.bin_columns * pitch;
    for (int64_t j = 0; j < pooling.bin_columns; ++j, bin += pitch) {
      scalar_t* map = image + bank.map_offset[maps.at(roi.number, i, j)];
      vector_t gradients[panel_t::count];
      FSN_D2_UNROLL for (int p = 0; p < panel_t::count; ++p) {
        load(bin + p * panel_t::lanes, gradients[p]);
      }
      const auto* first_column = roi.columns.begin(j);
      const auto* last_column = roi.columns.end(j);
      for (auto row = rows_begin; row != rows_end; ++row) {
        scalar_t* line = map + row->cell * row_stride;
        const scalar_t row_weight = row->weight * share;
        for (const auto* column = first_column; column != last_column; ++column) {
          scalar_t* cell = line + column->cell * column_stride;
          const scalar_t weight = row_weight * column->weight;
          FSN_D2_UNROLL for (int p = 0; p < panel_t::count; ++p) {
            vector_t values;
            load(cell + p * panel_t::lanes, values);
            values += gradients[p] * weight;
            store(values, cell + p * panel_t::lanes);
          }
        }
      }
    }
  }
}

// Adds a chunk of RoIs to rows [begin, end) of the gradients, counted through levels and images.
struct ScatterGradients {
  template <int kBytes, typename scalar_t>
  FSN_D2_INLINE static void run(
      const RoiTable<scalar_t>& table,
      const std::vector<BankView<scalar_t>>& grad_banks,
      const std::vector<RoiGradient<scalar_t>>& chunk,
      int64_t chunk_size,
      const std::vector<int64_t>& first_row_of_level,
      int64_t begin,
      int64_t end) {
    const Pooling& pooling = table.pooling;
    const int64_t pitch = pooling.slots() * pooling.channels;
    for (int64_t n = 0; n < chunk_size; ++n) {
      const RoiGradient<scalar_t>& gradient = chunk[n];
      const PlacedRoi<scalar_t>& roi = gradient.roi;
      const int64_t height = pooling.levels[roi.level].height;
      const int64_t top = first_row_of_level[roi.level] + roi.image * height;
      const int64_t first_row = std::max<int64_t>(begin - top, 0);
      const int64_t last_row = std::min(end - top, height);
      if (first_row >= last_row) {
        continue;
      }
      for (int64_t source = 0; source < pooling.sources; ++source) {
        const auto& bank = grad_banks[source * pooling.levels.size() + roi.level];
        const scalar_t* bins = gradient.bins.data() + pooling.slot_of(source) * pooling.channels;
        for_each_panel<scalar_t, kBytes / sizeof(scalar_t)>(
            0, pooling.channels, [&](auto panel, int64_t channel) FSN_D2_INLINE_LAMBDA {
              scatter_panel<decltype(panel)>(
                  pooling,
                  roi,
                  bank,
                  table.maps[source],
                  first_row,
                  last_row,
                  channel,
                  bins + channel,
                  pitch);
            });
      }
    }
  }
};

}  // namespace fsn_d2
