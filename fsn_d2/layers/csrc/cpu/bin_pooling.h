// Forward of selective_roi_pool: what is done for one RoI.

#pragma once

#include <cstdint>
#include <vector>

#include "../arguments.h"
#include "../bin_geometry.h"
#include "../pool_arguments.h"
#include "bank_views.h"
#include "roi_table.h"
#include "roi_values.h"
#include "vectors.h"

namespace fsn_d2 {

// A RoI on its level: the cells of its rows and columns of bins.
template <typename scalar_t>
struct BinnedRoi {
  int64_t number = 0;
  int64_t image = 0;
  int64_t level = 0;
  std::vector<CellRange> rows, columns;

  FSN_D2_OUT_OF_LINE void place(const RoiTable<scalar_t>& table, int64_t k) {
    const Pooling& pooling = table.pooling;
    const scalar_t* roi = table.rois + k * 5;
    number = k;
    image = static_cast<int64_t>(roi[0]);
    level = table.levels ? table.levels[k] : 0;
    const Level& map = pooling.levels[level];
    const auto scale = static_cast<scalar_t>(map.scale);
    place_axis(roi[2] * scale, roi[4] * scale, pooling.bin_rows, map.height, rows);
    place_axis(roi[1] * scale, roi[3] * scale, pooling.bin_columns, map.width, columns);
  }

 private:
  static void place_axis(
      scalar_t low, scalar_t high, int64_t bins, int64_t cells, std::vector<CellRange>& ranges) {
    const auto axis = BinAxis<scalar_t>::place(low, high, bins, cells);
    ranges.resize(bins);
    for (int64_t bin = 0; bin < bins; ++bin) {
      ranges[bin] = axis.range(bin);
    }
  }
};

// How the cells of a bin become one value. Cells come in row-major order.
struct Maximum {
  static constexpr float kStart = kLowest;

  // What is not a number is not greater.
  template <typename vector_t>
  static FSN_D2_INLINE void add(const vector_t& value, vector_t& result) {
    result = value > result ? value : result;
  }

  template <typename vector_t, typename scalar_t>
  static FSN_D2_INLINE void finish(scalar_t, vector_t&) {}
};

struct Mean {
  static constexpr float kStart = 0;

  template <typename vector_t>
  static FSN_D2_INLINE void add(const vector_t& value, vector_t& result) {
    result += value;
  }

  template <typename vector_t, typename scalar_t>
  static FSN_D2_INLINE void finish(scalar_t count, vector_t& result) {
    result /= count;
  }
};

// Pools one panel of channels for all bins of a RoI. `last`: the place of its last vector; `bins`:
// [PH * PW, C], from the panel's first channel on.
template <typename reduction_t, typename panel_t, typename scalar_t>
FSN_D2_INLINE void pool_bins(
    const Pooling& pooling,
    const BinnedRoi<scalar_t>& roi,
    const BankView<const scalar_t>& bank,
    const MapIndex& maps,
    int64_t channel,
    int64_t last,
    scalar_t* bins) {
  using vector_t = typename panel_t::vector_t;
  constexpr int kCount = panel_t::count;
  const scalar_t* image = bank.data + roi.image * bank.image_stride + channel;
  const int64_t row_stride = bank.row_stride;
  const int64_t column_stride = bank.column_stride;
  for (int64_t i = 0; i < pooling.bin_rows; ++i) {
    const CellRange rows = roi.rows[i];
    for (int64_t j = 0; j < pooling.bin_columns; ++j, bins += pooling.channels) {
      const CellRange columns = roi.columns[j];
      const int64_t count = rows.count() * columns.count();
      const scalar_t* map = image + bank.map_offset[maps.at(roi.number, i, j)];
      vector_t results[kCount];
      FSN_D2_UNROLL for (int p = 0; p < kCount; ++p) {
        results[p] = vector_t{} + (count > 0 ? static_cast<scalar_t>(reduction_t::kStart) : 0);
      }
      for (int64_t row = rows.first; count > 0 && row < rows.end; ++row) {
        const scalar_t* cell = map + row * row_stride + columns.first * column_stride;
        for (int64_t column = columns.first; column < columns.end; ++column) {
          FSN_D2_UNROLL for (int p = 0; p < kCount; ++p) {
            vector_t values;
            load(cell + (p + 1 < kCount ? p * panel_t::lanes : last), values);
            reduction_t::add(values, results[p]);
          }
          cell += column_stride;
        }
      }
      FSN_D2_UNROLL for (int p = 0; p < kCount; ++p) {
        reduction_t::finish(static_cast<scalar_t>(std::max<int64_t>(count, 1)), results[p]);
        store(results[p], bins + (p + 1 < kCount ? p * panel_t::lanes : last));
      }
    }
  }
}

// RoIs [begin, end) of the order: pooled and written.
template <typename reduction_t>
struct PoolBins {
  template <int kBytes, typename scalar_t>
  FSN_D2_INLINE static void run(
      const RoiTable<scalar_t>& table,
      const std::vector<BankView<const scalar_t>>& banks,
      const RoiWriter<scalar_t>& writer,
      int64_t begin,
      int64_t end) {
    const Pooling& pooling = table.pooling;
    std::vector<scalar_t> bins(pooling.bins() * pooling.channels);
    BinnedRoi<scalar_t> roi;
    for (int64_t i = begin; i < end; ++i) {
      writer.prefetch(table.order[i]);
      roi.place(table, table.order[i]);
      for_each_covering_panel<scalar_t, kBytes / sizeof(scalar_t)>(
          pooling.channels, [&](auto panel, int64_t channel, int64_t last) FSN_D2_INLINE_LAMBDA {
            pool_bins<reduction_t, decltype(panel)>(
                pooling,
                roi,
                banks[roi.level],
                table.maps[0],
                channel,
                last,
                bins.data() + channel);
          });
      writer.write(pooling, bins.data(), roi.number, writer.output);
    }
  }
};

}  // namespace fsn_d2
