// Forward: what is done for one RoI, and in what order for many.

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

// RoI k between bins [PH * PW, slots * C] and a contiguous tensor [K, output channels, PH, PW] of
// any floating type. A pointer to it, so that the kernels need not be compiled for every type.
template <typename scalar_t>
using WriteRoi = void (*)(const Pooling& pooling, const scalar_t* bins, int64_t k, void* output);
template <typename scalar_t>
using ReadRoi = void (*)(const Pooling& pooling, const void* input, int64_t k, scalar_t* bins);

template <typename scalar_t, typename output_t>
void write_roi(const Pooling& pooling, const scalar_t* bins, int64_t k, void* output) {
  const int64_t channels = pooling.output_channels();
  transpose(
      bins,
      pooling.slots() * pooling.channels,
      1,
      pooling.bins(),
      channels,
      static_cast<output_t*>(output) + k * channels * pooling.bins(),
      pooling.bins());
}

template <typename scalar_t, typename input_t>
void read_roi(const Pooling& pooling, const void* input, int64_t k, scalar_t* bins) {
  const int64_t channels = pooling.output_channels();
  transpose(
      static_cast<const input_t*>(input) + k * channels * pooling.bins(),
      pooling.bins(),
      1,
      channels,
      pooling.bins(),
      bins,
      pooling.slots() * pooling.channels);
}

// Where pooled RoIs go.
template <typename scalar_t>
struct RoiWriter {
  WriteRoi<scalar_t> write;
  void* output;
  int64_t bytes;  // of a RoI

  // Fetches the memory that RoI k will be written to, while it is pooled.
  FSN_D2_INLINE void prefetch(int64_t k) const {
    const char* start = static_cast<const char*>(output) + k * bytes;
    for (int64_t byte = 0; byte < bytes; byte += 64) {
      __builtin_prefetch(start + byte, 1);
    }
  }
};

// RoIs [begin, end) of the order: pooled, merged and written.
struct PoolRois {
  template <int kBytes, typename scalar_t>
  FSN_D2_INLINE static void run(
      const RoiTable<scalar_t>& table,
      const std::vector<BankView<const scalar_t>>& banks,
      const RoiWriter<scalar_t>& writer,
      int64_t begin,
      int64_t end) {
    const Pooling& pooling = table.pooling;
    std::vector<scalar_t> bins(pooling.bins() * pooling.slots() * pooling.channels);
    PlacedRoi<scalar_t> roi;
    for (int64_t i = begin; i < end; ++i) {
      writer.prefetch(table.order[i]);
      roi.place(table, table.order[i]);
      pool_sources<kBytes>(table, banks, roi, bins.data());
      if (multiplies(pooling.merge)) {
        multiply_bins(pooling, bins.data());
      }
      writer.write(pooling, bins.data(), roi.number, writer.output);
    }
  }
};

}  // namespace fsn_d2
