// Backward of selective_roi_pool: RoIs in chunks, each prepared by RoI and then added by row of the
// maps.

#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "bin_pooling.h"

namespace fsn_d2 {

// Numbers a cell, beside a value in a vector.
template <typename scalar_t>
using CellNumber = std::conditional_t<sizeof(scalar_t) == 8, int64_t, int32_t>;

// A RoI on its way back.
template <typename scalar_t>
struct BinGradient {
  BinnedRoi<scalar_t> roi;
  std::vector<scalar_t> bins;                 // [PH * PW, C], the gradient of each cell of the bin
  std::vector<CellNumber<scalar_t>> winners;  // of maxima: the cell that it goes to, or -1
};

// Finds the first maximum, row by row, of one panel of channels in every bin.
template <typename panel_t, typename scalar_t>
FSN_D2_INLINE void find_winners(
    const Pooling& pooling,
    const BinnedRoi<scalar_t>& roi,
    const BankView<const scalar_t>& bank,
    const MapIndex& maps,
    int64_t channel,
    int64_t last,
    CellNumber<scalar_t>* winners) {
  using vector_t = typename panel_t::vector_t;
  using numbers_t = Lanes<CellNumber<scalar_t>, panel_t::lanes>;
  constexpr int kCount = panel_t::count;
  const scalar_t* image = bank.data + roi.image * bank.image_stride + channel;
  const int64_t width = pooling.levels[roi.level].width;
  for (int64_t i = 0; i < pooling.bin_rows; ++i) {
    const CellRange rows = roi.rows[i];
    for (int64_t j = 0; j < pooling.bin_columns; ++j, winners += pooling.channels) {
      const CellRange columns = roi.columns[j];
      const scalar_t* map = image + bank.map_offset[maps.at(roi.number, i, j)];
      vector_t best[kCount];
      numbers_t found[kCount];
      FSN_D2_UNROLL for (int p = 0; p < kCount; ++p) {
        best[p] = vector_t{} + static_cast<scalar_t>(kLowest);
        found[p] = numbers_t{} - 1;
      }
      for (int64_t row = rows.first; row < rows.end; ++row) {
        const scalar_t* line = map + row * bank.row_stride;
        for (int64_t column = columns.first; column < columns.end; ++column) {
          const scalar_t* cell = line + column * bank.column_stride;
          const auto number = static_cast<CellNumber<scalar_t>>(row * width + column);
          FSN_D2_UNROLL for (int p = 0; p < kCount; ++p) {
            vector_t values;
            load(cell + (p + 1 < kCount ? p * panel_t::lanes : last), values);
            const auto greater = values > best[p];
            best[p] = greater ? values : best[p];
            found[p] = greater ? numbers_t{} + number : found[p];
          }
        }
      }
      FSN_D2_UNROLL for (int p = 0; p < kCount; ++p) {
        store(found[p], winners + (p + 1 < kCount ? p * panel_t::lanes : last));
      }
    }
  }
}

// RoIs [begin, end) of the order, in a chunk that starts at `first`. Maxima are looked for once
// more rather than kept.
struct PrepareBinGradients {
  template <int kBytes, typename scalar_t>
  FSN_D2_INLINE static void run(
      const RoiTable<scalar_t>& table,
      const std::vector<BankView<const scalar_t>>& banks,
      const ReadRoi<scalar_t>& read,
      const void* const& grad_output,
      std::vector<BinGradient<scalar_t>>* const& chunk,
      Mode mode,
      int64_t first,
      int64_t begin,
      int64_t end) {
    const Pooling& pooling = table.pooling;
    for (int64_t i = begin; i < end; ++i) {
      BinGradient<scalar_t>& gradient = (*chunk)[i - first];
      gradient.roi.place(table, table.order[i]);
      gradient.bins.resize(pooling.bins() * pooling.channels);
      read(pooling, grad_output, gradient.roi.number, gradient.bins.data());
      if (mode == Mode::kAvg) {
        share_out(pooling, gradient);
        continue;
      }
      gradient.winners.resize(pooling.bins() * pooling.channels);
      for_each_covering_panel<scalar_t, kBytes / sizeof(scalar_t)>(
          pooling.channels, [&](auto panel, int64_t channel, int64_t last) FSN_D2_INLINE_LAMBDA {
            find_winners<decltype(panel)>(
                pooling,
                gradient.roi,
                banks[gradient.roi.level],
                table.maps[0],
                channel,
                last,
                gradient.winners.data() + channel);
          });
    }
  }

  // From the gradient of a bin to that of each of its cells.
  template <typename scalar_t>
  FSN_D2_INLINE static void share_out(const Pooling& pooling, BinGradient<scalar_t>& gradient) {
    scalar_t* value = gradient.bins.data();
    for (const CellRange& rows : gradient.roi.rows) {
      for (const CellRange& columns : gradient.roi.columns) {
        const auto count =
            static_cast<scalar_t>(std::max<int64_t>(rows.count() * columns.count(), 1));
        for (int64_t c = 0; c < pooling.channels; ++c) {
          *value++ /= count;
        }
      }
    }
  }
};

// Maxima of bins of at most so many cells per lane of a vector are added by vectors to all of their
// cells, 0 where they do not belong: in small bins that is faster than cell by cell.
constexpr int64_t kCellsPerLane = 4;

// Adds a panel of channels of every bin to rows [first_row, last_row) of the map: of a mean all of
// its cells, of a maximum the one that it comes from, in bins of at most `most_cells`.
template <Mode kMode, typename panel_t, typename scalar_t>
FSN_D2_INLINE void scatter_panel(
    const Pooling& pooling,
    const BinGradient<scalar_t>& gradient,
    const BankView<scalar_t>& bank,
    const MapIndex& maps,
    int64_t first_row,
    int64_t last_row,
    int64_t channel,
    int64_t most_cells) {
  using vector_t = typename panel_t::vector_t;
  using numbers_t = Lanes<CellNumber<scalar_t>, panel_t::lanes>;
  constexpr int kCount = panel_t::count;
  const BinnedRoi<scalar_t>& roi = gradient.roi;
  const int64_t width = pooling.levels[roi.level].width;
  scalar_t* image = bank.data + roi.image * bank.image_stride + channel;
  for (int64_t i = 0; i < pooling.bin_rows; ++i) {
    const int64_t top = std::max(roi.rows[i].first, first_row);
    const int64_t bottom = std::min(roi.rows[i].end, last_row);
    for (int64_t j = 0; top < bottom && j < pooling.bin_columns; ++j) {
      const CellRange columns = roi.columns[j];
      if (kMode == Mode::kMax && roi.rows[i].count() * columns.count() > most_cells) {
        continue;
      }
      const int64_t bin = (i * pooling.bin_columns + j) * pooling.channels + channel;
      scalar_t* map = image + bank.map_offset[maps.at(roi.number, i, j)];
      vector_t gradients[kCount];
      numbers_t winners[kCount];
      FSN_D2_UNROLL for (int p = 0; p < kCount; ++p) {
        load(gradient.bins.data() + bin + p * panel_t::lanes, gradients[p]);
        if constexpr (kMode == Mode::kMax) {
          load(gradient.winners.data() + bin + p * panel_t::lanes, winners[p]);
        }
      }
      for (int64_t row = top; row < bottom; ++row) {
        scalar_t* line = map + row * bank.row_stride;
        for (int64_t column = columns.first; column < columns.end; ++column) {
          scalar_t* cell = line + column * bank.column_stride;
          const auto number = static_cast<CellNumber<scalar_t>>(row * width + column);
          FSN_D2_UNROLL for (int p = 0; p < kCount; ++p) {
            vector_t values;
            load(cell + p * panel_t::lanes, values);
            if constexpr (kMode == Mode::kMax) {
              values += winners[p] == numbers_t{} + number ? gradients[p] : vector_t{};
            } else {
              values += gradients[p];
            }
            store(values, cell + p * panel_t::lanes);
          }
        }
      }
    }
  }
}

// Adds the gradients of maxima to the cells of rows [first_row, last_row) of the map, one by one,
// in bins of more than `most_cells`.
template <typename scalar_t>
FSN_D2_INLINE void scatter_large_maxima(
    const Pooling& pooling,
    const BinGradient<scalar_t>& gradient,
    const BankView<scalar_t>& bank,
    const MapIndex& maps,
    int64_t first_row,
    int64_t last_row,
    int64_t most_cells) {
  const BinnedRoi<scalar_t>& roi = gradient.roi;
  const int64_t width = pooling.levels[roi.level].width;
  const int64_t first = first_row * width;
  const int64_t end = last_row * width;
  for (int64_t i = 0; i < pooling.bin_rows; ++i) {
    if (roi.rows[i].first >= last_row || roi.rows[i].end <= first_row) {
      continue;
    }
    for (int64_t j = 0; j < pooling.bin_columns; ++j) {
      if (roi.rows[i].count() * roi.columns[j].count() <= most_cells) {
        continue;
      }
      const int64_t bin = (i * pooling.bin_columns + j) * pooling.channels;
      const scalar_t* grads = gradient.bins.data() + bin;
      const auto* winners = gradient.winners.data() + bin;
      scalar_t* cells =
          bank.data + roi.image * bank.image_stride + bank.map_offset[maps.at(roi.number, i, j)];
      for (int64_t c = 0; c < pooling.channels; ++c) {
        if (winners[c] >= first && winners[c] < end) {
          cells[winners[c] * bank.column_stride + c] += grads[c];  // rows adjoin
        }
      }
    }
  }
}

// Adds a chunk of RoIs to rows [begin, end) of the gradients, counted through levels and images.
struct ScatterBinGradients {
  template <int kBytes, typename scalar_t>
  FSN_D2_INLINE static void run(
      const RoiTable<scalar_t>& table,
      const std::vector<BankView<scalar_t>>& grad_banks,
      const std::vector<BinGradient<scalar_t>>& chunk,
      Mode mode,
      int64_t chunk_size,
      const std::vector<int64_t>& first_row_of_level,
      int64_t begin,
      int64_t end) {
    const Pooling& pooling = table.pooling;
    for (int64_t n = 0; n < chunk_size; ++n) {
      const BinnedRoi<scalar_t>& roi = chunk[n].roi;
      const BankView<scalar_t>& bank = grad_banks[roi.level];
      const int64_t height = pooling.levels[roi.level].height;
      const int64_t top = first_row_of_level[roi.level] + roi.image * height;
      const int64_t first_row = std::max<int64_t>(begin - top, 0);
      const int64_t last_row = std::min(end - top, height);
      if (first_row >= last_row) {
        continue;
      }
      if (mode == Mode::kMax) {
        add<kBytes, Mode::kMax>(pooling, chunk[n], bank, table.maps[0], first_row, last_row);
      } else {
        add<kBytes, Mode::kAvg>(pooling, chunk[n], bank, table.maps[0], first_row, last_row);
      }
    }
  }

 private:
  template <int kBytes, Mode kMode, typename scalar_t>
  FSN_D2_INLINE static void add(
      const Pooling& pooling,
      const BinGradient<scalar_t>& gradient,
      const BankView<scalar_t>& bank,
      const MapIndex& maps,
      int64_t first_row,
      int64_t last_row) {
    constexpr int kLanes = kBytes / sizeof(scalar_t);
    constexpr int64_t kMostCells = kCellsPerLane * kLanes;
    for_each_panel<scalar_t, kLanes>(
        0, pooling.channels, [&](auto panel, int64_t channel) FSN_D2_INLINE_LAMBDA {
          scatter_panel<kMode, decltype(panel)>(
              pooling, gradient, bank, maps, first_row, last_row, channel, kMostCells);
        });
    if constexpr (kMode == Mode::kMax) {
      scatter_large_maxima(pooling, gradient, bank, maps, first_row, last_row, kMostCells);
    }
  }
};

}  // namespace fsn_d2
