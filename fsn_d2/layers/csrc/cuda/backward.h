// The kernels that bring the gradient of the slots [rois, bins, slots, C] to the banks: by scatter,
// or by gather in a fixed order.

#pragma once

#include "areas.h"
#include "pooling.h"

namespace fsn_d2 {

// A block takes a tile of bins and adds to the cells that they read. Tiles hold all channels.
template <typename scalar_t>
struct ScatterGradients {
  Problem<scalar_t> problem;
  Tiling tiling;
  const Bank* grad_banks;
  const scalar_t* grad_slots;

  template <typename Block>
  FSN_D2_DEVICE void operator()(const Block& block, int64_t tasks, char* shared) const {
    for (int64_t task = block.number(); task < tasks; task += block.blocks()) {
      const Tile tile = tiling.tile(task);
      const auto& roi = place_in_shared(block, problem, tile.roi, shared);
      TileTaps<scalar_t> taps(shared + kRoiBytes<scalar_t>, tile);
      if (roi.valid) {
        for_each_pass(block, roi, tile, taps, false, [&](bool) {
          for (int i = block.thread(); i < tile.bins() * tile.channels; i += block.threads()) {
            scatter(block, roi, tile, taps, i / tile.channels, i % tile.channels);
          }
        });
      }
      block.sync();
    }
  }

 private:
  template <typename Block>
  FSN_D2_DEVICE void scatter(
      const Block& block,
      const PlacedRoi<scalar_t>& roi,
      const Tile& tile,
      const TileTaps<scalar_t>& taps,
      int bin,
      int channel) const {
    const int64_t row = roi.number * problem.bins() + tile.bin(bin, problem.bin_columns);
    const scalar_t* grads = grad_slots + row * problem.slots() * problem.channels + channel;
    for (int32_t group = 0; group < problem.groups(); ++group) {
      for (int32_t slot = 0; slot < problem.slots_per_group(); ++slot, grads += problem.channels) {
        const scalar_t grad = *grads * roi.share;
        const SourceRange sources = problem.sources_of(group, slot);
        for (int32_t source = sources.first; source < sources.end; ++source) {
          scatter_source(block, roi, tile, taps, bin, channel, source, grad);
        }
      }
    }
  }

  template <typename Block>
  FSN_D2_DEVICE void scatter_source(
      const Block& block,
      const PlacedRoi<scalar_t>& roi,
      const Tile& tile,
      const TileTaps<scalar_t>& taps,
      int bin,
      int channel,
      int32_t source,
      scalar_t grad) const {
    const int i = bin / tile.columns;
    const int j = bin % tile.columns;
    const int64_t map =
        problem.map_indices[source].at(roi.number, tile.first_row + i, tile.first_column + j);
    if (map < 0) {
      return;
    }
    const Bank& bank = grad_banks[source * problem.num_levels + roi.level];
    scalar_t* cells = static_cast<scalar_t*>(bank.data) + roi.image * bank.image_stride +
        problem.map_offsets[bank.first_map + map] + channel;
    for (int r = 0; r < taps.row_count(i); ++r) {
      const Tap<scalar_t> row = taps.row(i)[r];
      scalar_t* line = cells + row.cell * bank.row_stride;
      for (int s = 0; s < taps.column_count(j); ++s) {
        const Tap<scalar_t> column = taps.column(j)[s];
        block.add(line + column.cell * bank.column_stride, grad * (row.weight * column.weight));
      }
    }
  }
};

// A block owns an area of cells (areas.h).
template <typename scalar_t>
struct GatherGradients {
  Problem<scalar_t> problem;
  Tiling tiling;  // of the bins
  const Bank* grad_banks;
  const scalar_t* grad_slots;

  static int64_t shared_bytes(const Tiling& tiling) {
    return kRoiBytes<scalar_t> + weight_bytes(tiling) + kThreads;
  }

  template <typename Block>
  FSN_D2_DEVICE void operator()(const Block& block, int64_t tasks, char* shared) const {
    char* touches = shared + kRoiBytes<scalar_t> + weight_bytes(tiling);
    for (int64_t task = block.number(); task < tasks; task += block.blocks()) {
      const Area area = area_of(problem, task);
      for (int64_t first = 0; first < problem.rois; first += block.threads()) {
        const int64_t mine = first + block.thread();
        touches[block.thread()] = mine < problem.rois && may_touch(problem.place(mine), area);
        block.sync();
        const auto count =
            static_cast<int>(std::min<int64_t>(block.threads(), problem.rois - first));
        for (int i = 0; i < count; ++i) {
          if (touches[i]) {
            add_roi(block, first + i, area, shared);
          }
        }
        block.sync();
      }
    }
  }

 private:
  FSN_D2_HOST_AND_DEVICE static int64_t weight_bytes(const Tiling& tiling) {
    return (kAreaRows * tiling.rows + kAreaColumns * tiling.columns) * sizeof(scalar_t);
  }

  FSN_D2_DEVICE bool may_touch(const PlacedRoi<scalar_t>& roi, const Area& area) const {
    return roi.valid && roi.level == area.level && roi.image == area.image &&
        roi.rows.may_touch(area.first_row, area.first_row + area.rows, problem.bin_rows) &&
        roi.columns.may_touch(
            area.first_column, area.first_column + area.columns, problem.bin_columns);
  }

  template <typename Block>
  FSN_D2_DEVICE void add_roi(
      const Block& block, int64_t roi_number, const Area& area, char* shared) const {
    const auto& roi = place_in_shared(block, problem, roi_number, shared);
    auto* weights = reinterpret_cast<scalar_t*>(shared + kRoiBytes<scalar_t>);
    for (int32_t number = 0; number < tiling.tiles(); ++number) {
      const Tile tile = tiling.tile(roi.number, number);
      weigh(block, roi, area, tile, weights);
      block.sync();
      for (int i = block.thread(); i < area.cells() * area.channels; i += block.threads()) {
        for (int32_t group = 0; group < problem.groups(); ++group) {
          for (int32_t slot = 0; slot < problem.slots_per_group(); ++slot) {
            const SourceRange sources = problem.sources_of(group, slot);
            for (int32_t source = sources.first; source < sources.end; ++source) {
              const int32_t kept = group * problem.slots_per_group() + slot;
              gather(roi, area, tile, weights, source, kept, i / area.channels, i % area.channels);
            }
          }
        }
      }
      block.sync();
    }
  }

  // The weights of the area's rows in the tile's rows of bins, [kAreaRows, rows], then those of
  // its columns.
  template <typename Block>
  FSN_D2_DEVICE void weigh(
      const Block& block,
      const PlacedRoi<scalar_t>& roi,
      const Area& area,
      const Tile& tile,
      scalar_t* weights) const {
    const int row_weights = kAreaRows * tile.rows;
    const int all = row_weights + kAreaColumns * tile.columns;
    for (int i = block.thread(); i < all; i += block.threads()) {
      const int column = i - row_weights;
      weights[i] = column < 0
          ? roi.rows.weight_of(tile.first_row + i % tile.rows, area.first_row + i / tile.rows)
          : roi.columns.weight_of(
                tile.first_column + column % tile.columns,
                area.first_column + column / tile.columns);
    }
  }

  // Adds what one cell and channel of a source gets from a tile of bins. Terms of one map, and so
  // of one place in memory, are summed up before they go there.
  FSN_D2_DEVICE void gather(
      const PlacedRoi<scalar_t>& roi,
      const Area& area,
      const Tile& tile,
      const scalar_t* weights,
      int32_t source,
      int32_t slot,
      int cell,
      int channel) const {
    const int row = cell / area.columns;
    const int column = cell % area.columns;
    const scalar_t* row_weights = weights + row * tile.rows;
    const scalar_t* column_weights = weights + kAreaRows * tile.rows + column * tile.columns;
    const Bank& bank = grad_banks[source * problem.num_levels + area.level];
    scalar_t* grads = static_cast<scalar_t*>(bank.data) + area.image * bank.image_stride +
        (area.first_row + row) * bank.row_stride +
        (area.first_column + column) * bank.column_stride + area.first_channel + channel;
    const MapIndex& index = problem.map_indices[source];
    int64_t map = -1;
    scalar_t sum = 0;
    for (int i = 0; i < tile.rows; ++i) {
      if (row_weights[i] == scalar_t(0)) {
        continue;
      }
      for (int j = 0; j < tile.columns; ++j) {
        if (column_weights[j] == scalar_t(0)) {
          continue;
        }
        const int64_t next = index.at(roi.number, tile.first_row + i, tile.first_column + j);
        if (next != map) {
          flush(grads, bank, map, sum);
          map = next;
          sum = 0;
        }
        const int64_t bin =
            roi.number * problem.bins() + tile.bin(i * tile.columns + j, problem.bin_columns);
        const scalar_t grad = grad_slots
            [(bin * problem.slots() + slot) * problem.channels + area.first_channel + channel];
        sum = std::fma(grad, row_weights[i] * column_weights[j] * roi.share, sum);
      }
    }
    flush(grads, bank, map, sum);
  }

  FSN_D2_DEVICE void flush(scalar_t* grads, const Bank& bank, int64_t map, scalar_t sum) const {
    if (map >= 0) {
      grads[problem.map_offsets[bank.first_map + map]] += sum;
    }
  }
};

}  // namespace fsn_d2
