// Backward: RoIs in chunks, each prepared by RoI and then added by row of the maps.

#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../arguments.h"
#include "pooling.h"
#include "vectors.h"

namespace fsn_d2 {

// A RoI on its way back: where it lies, and the gradient of its slots, [PH * PW, slots * C].
template <typename scalar_t>
struct RoiGradient {
  PlacedRoi<scalar_t> roi;
  std::vector<scalar_t> bins;
};

// RoIs [begin, end) of the order, in a chunk that starts at `first`: from the gradient of the
// output to that of the slots. What a product needs of the pooled features is pooled again rather
// than kept.
struct PrepareGradients {
  template <int kBytes, typename scalar_t>
  FSN_D2_INLINE static void run(
      const RoiTable<scalar_t>& table,
      const std::vector<BankView<const scalar_t>>& banks,
      const ReadRoi<scalar_t>& read,
      const void* const& grad_output,
      std::vector<RoiGradient<scalar_t>>* const& chunk,
      int64_t first,
      int64_t begin,
      int64_t end) {
    const Pooling& pooling = table.pooling;
    const int64_t channels = pooling.channels;
    const int64_t pitch = pooling.slots() * channels;
    std::vector<scalar_t> pooled(multiplies(pooling.merge) ? pooling.bins() * pitch : 0);
    for (int64_t i = begin; i < end; ++i) {
      RoiGradient<scalar_t>& gradient = (*chunk)[i - first];
      gradient.roi.place(table, table.order[i]);
      gradient.bins.resize(pooling.bins() * pitch);
      read(pooling, grad_output, gradient.roi.number, gradient.bins.data());
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
