// The kernels of selective_roi_pool: forward, and its gradient by scatter or by gather in a fixed
// order.

#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "../bin_geometry.h"
#include "../pool_arguments.h"
#include "areas.h"
#include "pooling.h"

namespace fsn_d2 {

// A RoI on its level, in whole cells.
template <typename scalar_t>
struct BinnedRoi {
  bool valid;
  int64_t number, image;
  int32_t level;
  BinAxis<scalar_t> rows, columns;

  FSN_D2_DEVICE static BinnedRoi place(const Problem<scalar_t>& problem, int64_t number) {
    BinnedRoi placed{};
    const RoiPlace map = problem.locate(number);
    placed.valid = map.valid;
    if (!map.valid) {
      return placed;
    }
    const scalar_t* roi = problem.roi_table + number * 5;
    const Level& level = problem.levels[map.level];
    const auto scale = static_cast<scalar_t>(level.scale);
    placed.number = number;
    placed.image = map.image;
    placed.level = map.level;
    placed.rows =
        BinAxis<scalar_t>::place(roi[2] * scale, roi[4] * scale, problem.bin_rows, level.height);
    placed.columns =
        BinAxis<scalar_t>::place(roi[1] * scale, roi[3] * scale, problem.bin_columns, level.width);
    return placed;
  }
};

// A bin's cells in one bank.
struct BinCells {
  int64_t map;  // where its map starts; -1: its bank index or its RoI is out of range
  CellRange rows, columns;

  FSN_D2_DEVICE int64_t count() const {
    return rows.count() * columns.count();
  }
};

template <typename scalar_t>
FSN_D2_DEVICE BinCells cells_of_bin(
    const Problem<scalar_t>& problem,
    const BinnedRoi<scalar_t>& roi,
    const Bank* banks,
    int32_t row,
    int32_t column) {
  const int64_t map = roi.valid ? problem.map_indices[0].at(roi.number, row, column) : -1;
  if (map < 0) {
    return {-1, {0, 0}, {0, 0}};
  }
  const Bank& bank = banks[roi.level];
  const int64_t start = roi.image * bank.image_stride + problem.map_offsets[bank.first_map + map];
  return {start, roi.rows.range(row), roi.columns.range(column)};
}

// How cells, in row-major order, become one value; what is not a number is not greater.
template <Mode kMode, typename scalar_t>
struct Reduction {
  scalar_t result = kMode == Mode::kMax ? static_cast<scalar_t>(kLowest) : scalar_t(0);
  int32_t winner = -1;  // the number of the cell that a maximum comes from

  FSN_D2_DEVICE void add(scalar_t value, int32_t number) {
    if constexpr (kMode == Mode::kAvg) {
      result += value;
    } else if (value > result) {
      result = value;
      winner = number;
    }
  }

  FSN_D2_DEVICE scalar_t finish(int64_t count) const {
    if (count == 0) {
      return scalar_t(0);
    }
    return kMode == Mode::kAvg ? result / static_cast<scalar_t>(count) : result;
  }
};

// Reduces kWidth channels of the cells of one bin.
template <Mode kMode, typename value_t, int kWidth, typename scalar_t>
FSN_D2_DEVICE void reduce_bin(
    const BinCells& bin,
    const Bank& bank,
    int64_t width,
    int32_t channel,
    Reduction<kMode, scalar_t> (&reductions)[kWidth]) {
  const value_t* map = static_cast<const value_t*>(bank.data) + bin.map + channel;
  for (int64_t row = bin.rows.first; row < bin.rows.end; ++row) {
    const value_t* line = map + row * bank.row_stride;
    const auto first_number = static_cast<int32_t>(row * width);
    FSN_D2_UNROLL_4 for (int64_t column = bin.columns.first; column < bin.columns.end; ++column) {
      const auto cell =
          *reinterpret_cast<const Pack<value_t, kWidth>*>(line + column * bank.column_stride);
      FSN_D2_UNROLL for (int c = 0; c < kWidth; ++c) {
        reductions[c].add(
            static_cast<scalar_t>(cell.values[c]), first_number + static_cast<int32_t>(column));
      }
    }
  }
}

// Pools tiles and writes output [rois, C, bins].
template <Mode kMode, typename value_t, int kWidth, typename scalar_t>
struct PoolBins {
  Problem<scalar_t> problem;
  const Bank* banks;
  Tiling tiling;
  value_t* output;

  template <typename Block>
  FSN_D2_DEVICE void operator()(const Block& block, int64_t tasks, char* shared) const {
    for (int64_t task = block.number(); task < tasks; task += block.blocks()) {
      const Tile tile = tiling.tile(task);
      const auto roi = BinnedRoi<scalar_t>::place(problem, tile.roi);
      const PooledTile<scalar_t> pooled(shared, tile);
      const int packs = tile.channels / kWidth;
      for (int item = block.thread(); item < tile.bins() * packs; item += block.threads()) {
        pool(roi, tile, item / packs, item % packs * kWidth, pooled);
      }
      block.sync();
      write(block, tile, pooled);
      block.sync();
    }
  }

 private:
  FSN_D2_DEVICE void pool(
      const BinnedRoi<scalar_t>& roi,
      const Tile& tile,
      int bin,
      int channel,
      const PooledTile<scalar_t>& pooled) const {
    const BinCells cells = cells_of_bin(
        problem,
        roi,
        banks,
        tile.first_row + bin / tile.columns,
        tile.first_column + bin % tile.columns);
    Reduction<kMode, scalar_t> reductions[kWidth];
    if (cells.map >= 0) {
      reduce_bin<kMode, value_t, kWidth>(
          cells, banks[roi.level], 0, tile.first_channel + channel, reductions);
    }
    FSN_D2_UNROLL for (int c = 0; c < kWidth; ++c) {
      pooled.at(0, bin, channel + c) = cells.map >= 0 ? reductions[c].finish(cells.count())
                                                      : std::numeric_limits<scalar_t>::quiet_NaN();
    }
  }

  // Neighbouring threads write neighbouring bins.
  template <typename Block>
  FSN_D2_DEVICE void write(
      const Block& block, const Tile& tile, const PooledTile<scalar_t>& pooled) const {
    const int bins = tile.bins();
    const int64_t first_channel = tile.roi * problem.channels + tile.first_channel;
    for (int i = block.thread(); i < bins * tile.channels; i += block.threads()) {
      const int bin = i % bins;
      const int channel = i / bins;
      output[(first_channel + channel) * problem.bins() + tile.bin(bin, problem.bin_columns)] =
          static_cast<value_t>(pooled.at(0, bin, channel));
    }
  }
};

// What the gradient of every bin and channel does: its value, and the cell that it goes to.
template <typename scalar_t>
struct BinGradients {
  scalar_t* values;  // [rois, bins, C]; of a mean: for each of the bin's cells
  int32_t* winners;  // [rois, bins, C]; of a maximum: the number of the cell, or -1
};

// From the gradient of the output [rois, C, bins]. Maxima are looked for once more.
template <Mode kMode, typename value_t, int kWidth, typename scalar_t>
struct PrepareBinGradients {
  Problem<scalar_t> problem;
  const Bank* banks;
  const Bank* grad_banks;
  Tiling tiling;
  const value_t* grad_output;
  BinGradients<scalar_t> gradients;

  template <typename Block>
  FSN_D2_DEVICE void operator()(const Block& block, int64_t tasks, char* shared) const {
    for (int64_t task = block.number(); task < tasks; task += block.blocks()) {
      const Tile tile = tiling.tile(task);
      const auto roi = BinnedRoi<scalar_t>::place(problem, tile.roi);
      const PooledTile<scalar_t> grads(shared, tile);
      read(block, tile, grads);
      block.sync();
      write(block, tile, roi, grads);
      if constexpr (kMode == Mode::kMax) {
        find_winners(block, tile, roi);
      }
      block.sync();
    }
  }

 private:
  // Neighbouring threads read neighbouring bins.
  template <typename Block>
  FSN_D2_DEVICE void read(
      const Block& block, const Tile& tile, const PooledTile<scalar_t>& grads) const {
    const int bins = tile.bins();
    const int64_t first_channel = tile.roi * problem.channels + tile.first_channel;
    for (int i = block.thread(); i < bins * tile.channels; i += block.threads()) {
      const int bin = i % bins;
      const int channel = i / bins;
      grads.at(0, bin, channel) = static_cast<scalar_t>(
          grad_output
              [(first_channel + channel) * problem.bins() + tile.bin(bin, problem.bin_columns)]);
    }
  }

  // Neighbouring threads write neighbouring channels.
  template <typename Block>
  FSN_D2_DEVICE void write(
      const Block& block,
      const Tile& tile,
      const BinnedRoi<scalar_t>& roi,
      const PooledTile<scalar_t>& grads) const {
    for (int i = block.thread(); i < tile.bins() * tile.channels; i += block.threads()) {
      const int channel = i % tile.channels;
      const int bin = i / tile.channels;
      scalar_t grad = grads.at(0, bin, channel);
      if constexpr (kMode == Mode::kAvg) {
        const int64_t count = cells_of(roi, tile, bin, grad_banks).count();
        grad /= static_cast<scalar_t>(std::max<int64_t>(count, 1));
      }
      gradients.values[place(tile, bin) + channel] = grad;
    }
  }

  template <typename Block>
  FSN_D2_DEVICE void find_winners(
      const Block& block, const Tile& tile, const BinnedRoi<scalar_t>& roi) const {
    const int packs = tile.channels / kWidth;
    for (int item = block.thread(); item < tile.bins() * packs; item += block.threads()) {
      const int bin = item / packs;
      const int channel = item % packs * kWidth;
      const BinCells cells = cells_of(roi, tile, bin, banks);
      Reduction<kMode, scalar_t> reductions[kWidth];
      if (cells.map >= 0) {
        reduce_bin<kMode, value_t, kWidth>(
            cells,
            banks[roi.level],
            problem.levels[roi.level].width,
            tile.first_channel + channel,
            reductions);
      }
      FSN_D2_UNROLL for (int c = 0; c < kWidth; ++c) {
        gradients.winners[place(tile, bin) + channel + c] = reductions[c].winner;
      }
    }
  }

  FSN_D2_DEVICE BinCells
  cells_of(const BinnedRoi<scalar_t>& roi, const Tile& tile, int bin, const Bank* of) const {
    return cells_of_bin(
        problem,
        roi,
        of,
        tile.first_row + bin / tile.columns,
        tile.first_column + bin % tile.columns);
  }

  // Of the tile's first channel of a bin.
  FSN_D2_DEVICE int64_t place(const Tile& tile, int bin) const {
    const int64_t row = tile.roi * problem.bins() + tile.bin(bin, problem.bin_columns);
    return row * problem.channels + tile.first_channel;
  }
};

// A block takes a tile of bins and adds to the cells that their gradients go to. Tiles hold all
// channels.
template <Mode kMode, typename scalar_t>
struct ScatterBinGradients {
  Problem<scalar_t> problem;
  Tiling tiling;
  const Bank* grad_banks;
  BinGradients<scalar_t> gradients;

  template <typename Block>
  FSN_D2_DEVICE void operator()(const Block& block, int64_t tasks, char*) const {
    for (int64_t task = block.number(); task < tasks; task += block.blocks()) {
      const Tile tile = tiling.tile(task);
      const auto roi = BinnedRoi<scalar_t>::place(problem, tile.roi);
      for (int i = block.thread(); i < tile.bins() * tile.channels; i += block.threads()) {
        scatter(block, roi, tile, i / tile.channels, i % tile.channels);
      }
    }
  }

 private:
  template <typename Block>
  FSN_D2_DEVICE void scatter(
      const Block& block, const BinnedRoi<scalar_t>& roi, const Tile& tile, int bin, int channel)
      const {
    const BinCells cells = cells_of_bin(
        problem,
        roi,
        grad_banks,
        tile.first_row + bin / tile.columns,
        tile.first_column + bin % tile.columns);
    if (cells.map < 0) {
      return;
    }
    const Bank& bank = grad_banks[roi.level];
    const int64_t row = tile.roi * problem.bins() + tile.bin(bin, problem.bin_columns);
    const int64_t place = row * problem.channels + channel;
    const scalar_t grad = gradients.values[place];
    scalar_t* map = static_cast<scalar_t*>(bank.data) + cells.map + channel;
    if constexpr (kMode == Mode::kMax) {
      const int32_t winner = gradients.winners[place];
      if (winner >= 0) {
        block.add(map + winner * bank.column_stride, grad);  // rows adjoin
      }
    } else {
      for (int64_t y = cells.rows.first; y < cells.rows.end; ++y) {
        for (int64_t x = cells.columns.first; x < cells.columns.end; ++x) {
          block.add(map + y * bank.row_stride + x * bank.column_stride, grad);
        }
      }
    }
  }
};

// A block owns an area of cells (areas.h).
template <Mode kMode, typename scalar_t>
struct GatherBinGradients {
  Problem<scalar_t> problem;
  const Bank* grad_banks;
  BinGradients<scalar_t> gradients;

  static constexpr int64_t shared_bytes() {
    return kThreads;
  }

  template <typename Block>
  FSN_D2_DEVICE void operator()(const Block& block, int64_t tasks, char* touches) const {
    for (int64_t task = block.number(); task < tasks; task += block.blocks()) {
      const Area area = area_of(problem, task);
      for (int64_t first = 0; first < problem.rois; first += block.threads()) {
        const int64_t mine = first + block.thread();
        touches[block.thread()] = mine < problem.rois && may_touch(mine, area);
        block.sync();
        const auto count =
            static_cast<int>(std::min<int64_t>(block.threads(), problem.rois - first));
        for (int i = 0; i < count; ++i) {
          if (touches[i]) {
            add_roi(block, BinnedRoi<scalar_t>::place(problem, first + i), area);
          }
        }
        block.sync();
      }
    }
  }

 private:
  FSN_D2_DEVICE static bool meet(
      const BinAxis<scalar_t>& axis, int32_t bins, int32_t first, int32_t count) {
    return axis.range(0).first < first + count && axis.range(bins - 1).end > first;
  }

  FSN_D2_DEVICE bool may_touch(int64_t number, const Area& area) const {
    const auto roi = BinnedRoi<scalar_t>::place(problem, number);
    return roi.valid && roi.level == area.level && roi.image == area.image &&
        meet(roi.rows, problem.bin_rows, area.first_row, area.rows) &&
        meet(roi.columns, problem.bin_columns, area.first_column, area.columns);
  }

  // Each cell and channel stays with one thread, so nothing need wait.
  template <typename Block>
  FSN_D2_DEVICE void add_roi(
      const Block& block, const BinnedRoi<scalar_t>& roi, const Area& area) const {
    for (int i = block.thread(); i < area.cells() * area.channels; i += block.threads()) {
      const int cell = i / area.channels;
      const int64_t row = area.first_row + cell / area.columns;
      const int64_t column = area.first_column + cell % area.columns;
      gather(roi, row, column, area.first_channel + i % area.channels);
    }
  }

  FSN_D2_DEVICE void gather(
      const BinnedRoi<scalar_t>& roi, int64_t row, int64_t column, int32_t channel) const {
    const Bank& bank = grad_banks[roi.level];
    scalar_t* grads = static_cast<scalar_t*>(bank.data) + roi.image * bank.image_stride +
        row * bank.row_stride + column * bank.column_stride + channel;
    const int64_t number = row * problem.levels[roi.level].width + column;
    for (int32_t i = 0; i < problem.bin_rows; ++i) {
      if (!holds(roi.rows.range(i), row)) {
        continue;
      }
      for (int32_t j = 0; j < problem.bin_columns; ++j) {
        const int64_t map = problem.map_indices[0].at(roi.number, i, j);
        if (map < 0 || !holds(roi.columns.range(j), column)) {
          continue;
        }
        const int64_t bin = roi.number * problem.bins() + int64_t{i} * problem.bin_columns + j;
        const int64_t place = bin * problem.channels + channel;
        if (kMode == Mode::kAvg || gradients.winners[place] == number) {
          grads[problem.map_offsets[bank.first_map + map]] += gradients.values[place];
        }
      }
    }
  }

  FSN_D2_DEVICE static bool holds(const CellRange& range, int64_t cell) {
    return range.first <= cell && cell < range.end;
  }
};

}  // namespace fsn_d2
