// Forward: what is done for one RoI.

#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../arguments.h"
#include "bank_views.h"
#include "roi_geometry.h"
#include "roi_table.h"
#include "roi_values.h"
#include "vectors.h"

namespace fsn_d2 {

// One RoI placed on its level: the weights of its bins along both axes.
template <typename scalar_t>
struct PlacedRoi {
  int64_t number = 0;
  int64_t image = 0;
  int64_t level = 0;
  AxisTaps<scalar_t> rows;
  AxisTaps<scalar_t> columns;
  scalar_t share = 0;  // 1 / number of samples in a bin

  FSN_D2_OUT_OF_LINE void place(const RoiTable<scalar_t>& table, int64_t k) {
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
      scalar_t* place = writer.place_of(roi.number);
      pool_sources<kBytes>(table, banks, roi, place ? place : bins.data());
      if (place) {
        continue;
      }
      if (multiplies(pooling.merge)) {
        multiply_bins(pooling, bins.data());
      }
      writer.write(pooling, bins.data(), roi.number, writer.output);
    }
  }
};

}  // namespace fsn_d2
