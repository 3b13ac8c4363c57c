// What the kernels are given, and how their work is cut into tasks of one block each.
//
// Kernels are functors over a Block (thread(), threads(), number(), blocks(), sync(), add()) and
// its shared memory. launch.h has the Block of CUDA; the tests run the same functors on the host.

#pragma once

#include <cstdint>

#include "../arguments.h"
#include "geometry.h"

namespace fsn_d2 {

constexpr int kThreads = 256;  // per block, at most

template <typename integer_t>
FSN_D2_HOST_AND_DEVICE integer_t parts_of(integer_t size, integer_t part) {
  return (size + part - 1) / part;
}

// One source at one level in memory: the channels of a cell side by side, the rest anywhere.
struct Bank {
  void* data;
  int64_t image_stride, row_stride, column_stride;
  int64_t first_map;  // its place in Problem::map_offsets
};

// Which map of a source each bin of each RoI reads.
struct MapIndex {
  const int64_t* values;
  int64_t roi_stride, row_stride, column_stride;
  int64_t maps;

  // The map, or -1 for a value that names none.
  FSN_D2_DEVICE int64_t at(int64_t roi, int32_t bin_row, int32_t bin_column) const {
    const int64_t map =
        values[roi * roi_stride + bin_row * row_stride + bin_column * column_stride];
    return map >= 0 && map < maps ? map : -1;
  }
};

// A RoI on its level.
template <typename scalar_t>
struct PlacedRoi {
  bool valid;  // false: a batch index or a level out of range, or a number that is not finite
  int64_t number, image;
  int32_t level;
  Axis<scalar_t> rows, columns;
  scalar_t share;  // 1 / number of samples in a bin
};

// The map of a RoI.
struct RoiPlace {
  bool valid;  // false: a batch index or a level out of range, or a number that is not finite
  int64_t image;
  int32_t level;
};

// Sources [first, end).
struct SourceRange {
  int32_t first, end;
};

// The op's arguments on the device.
template <typename scalar_t>
struct Problem {
  int64_t images, rois;
  int32_t channels, bin_rows, bin_columns, sampling_ratio, sources, num_levels;
  bool stacks, multiplies, relu;
  const scalar_t* roi_table;    // [rois, 5]
  const int64_t* roi_levels;    // null: all on level 0
  const Level* levels;          // [num_levels]
  const MapIndex* map_indices;  // [sources]
  const int64_t* map_offsets;   // where the sampled extents of the maps of all banks start

  FSN_D2_DEVICE int64_t bins() const {
    return int64_t{bin_rows} * bin_columns;
  }

  // The slots of Pooling are written group by group: a group is one result of C channels.
  FSN_D2_DEVICE int32_t groups() const {
    return stacks ? sources : 1;
  }

  FSN_D2_DEVICE int32_t slots_per_group() const {
    return multiplies ? 2 : 1;
  }

  FSN_D2_DEVICE int32_t slots() const {
    return groups() * slots_per_group();
  }

  FSN_D2_DEVICE SourceRange sources_of(int32_t group, int32_t slot) const {
    if (stacks) {
      return {group, group + 1};
    }
    return {slot, multiplies && slot == 0 ? 1 : sources};
  }

  // Where a value of the output [rois, groups * C, bins] lies: stacked, the channels of a bin are
  // side by side, else the bins of a channel.
  FSN_D2_DEVICE int64_t
  output_offset(int64_t roi, int32_t group, int64_t channel, int64_t bin) const {
    const int64_t all_channels = int64_t{groups()} * channels;
    const int64_t place = int64_t{group} * channels + channel;
    return stacks ? (roi * bins() + bin) * all_channels + place
                  : (roi * all_channels + place) * bins() + bin;
  }

  // Whether a bin of a merged result reads from a source in which its index names no map. It pools
  // to NaN then; a product would carry that into the gradients of the other sources.
  FSN_D2_DEVICE bool lacks_map(int64_t roi, int32_t bin_row, int32_t bin_column) const {
    for (int32_t source = 0; !stacks && source < sources; ++source) {
      if (map_indices[source].at(roi, bin_row, bin_column) < 0) {
        return true;
      }
    }
    return false;
  }

  FSN_D2_DEVICE RoiPlace locate(int64_t number) const {
    const scalar_t* roi = roi_table + number * 5;
    const int64_t level = roi_levels ? roi_levels[number] : 0;
    const bool valid = roi[0] >= 0 && roi[0] < static_cast<scalar_t>(images) && level >= 0 &&
        level < num_levels && std::isfinite(roi[1]) && std::isfinite(roi[2]) &&
        std::isfinite(roi[3]) && std::isfinite(roi[4]);
    return {valid, valid ? static_cast<int64_t>(roi[0]) : 0, static_cast<int32_t>(level)};
  }

  FSN_D2_DEVICE PlacedRoi<scalar_t> place(int64_t number) const {
    PlacedRoi<scalar_t> placed{};
    const scalar_t* roi = roi_table + number * 5;
    const RoiPlace map = locate(number);
    placed.valid = map.valid;
    if (!placed.valid) {
      return placed;
    }
    const Level& level = levels[map.level];
    const auto scale = static_cast<scalar_t>(level.scale);
    // Half a pixel back: cell (0, 0) has its centre at (0.5, 0.5) in continuous coordinates.
    const scalar_t x1 = roi[1] * scale - scalar_t(0.5);
    const scalar_t y1 = roi[2] * scale - scalar_t(0.5);
    const scalar_t x2 = roi[3] * scale - scalar_t(0.5);
    const scalar_t y2 = roi[4] * scale - scalar_t(0.5);
    placed.number = number;
    placed.image = map.image;
    placed.level = map.level;
    placed.rows = Axis<scalar_t>::place(
        y1, y2 - y1, bin_rows, sampling_ratio, static_cast<int32_t>(level.height));
    placed.columns = Axis<scalar_t>::place(
        x1, x2 - x1, bin_columns, sampling_ratio, static_cast<int32_t>(level.width));
    const scalar_t samples =
        static_cast<scalar_t>(placed.rows.grid) * static_cast<scalar_t>(placed.columns.grid);
    placed.share = scalar_t(1) / std::max(samples, scalar_t(1));
    return placed;
  }
};

// Places a RoI in shared memory, once for the block. Between two calls there must be a sync after
// the last use.
template <typename scalar_t, typename Block>
FSN_D2_DEVICE const PlacedRoi<scalar_t>& place_in_shared(
    const Block& block, const Problem<scalar_t>& problem, int64_t number, char* shared) {
  auto* roi = reinterpret_cast<PlacedRoi<scalar_t>*>(shared);
  if (block.thread() == 0) {
    *roi = problem.place(number);
  }
  block.sync();
  return *roi;
}

// What it takes there; what follows stays aligned.
template <typename scalar_t>
constexpr int kRoiBytes = (sizeof(PlacedRoi<scalar_t>) + 15) / 16 * 16;

// A rectangle of bins of one RoI and a range of channels.
struct Tile {
  int64_t roi;
  int32_t first_row, first_column, first_channel;
  int32_t rows, columns, channels;

  FSN_D2_DEVICE int bins() const {
    return rows * columns;
  }

  // The bin's number within the RoI.
  FSN_D2_DEVICE int64_t bin(int in_tile, int32_t bin_columns) const {
    return int64_t{first_row + in_tile / columns} * bin_columns + first_column + in_tile % columns;
  }
};

// A bin and a channel of a tile.
struct TileValue {
  int bin, channel;

  // Neighbouring numbers are neighbours in the output.
  template <typename scalar_t>
  FSN_D2_DEVICE static TileValue nth(int i, const Tile& tile, const Problem<scalar_t>& problem) {
    return problem.stacks ? TileValue{i / tile.channels, i % tile.channels}
                          : TileValue{i % tile.bins(), i / tile.bins()};
  }
};

// How RoIs are cut into tiles.
struct Tiling {
  int32_t rows, columns, channels;  // of a full tile
  int32_t bin_rows, bin_columns, all_channels;
  int32_t row_tiles, column_tiles, channel_tiles;

  FSN_D2_HOST_AND_DEVICE int32_t tiles() const {
    return row_tiles * column_tiles * channel_tiles;
  }

  FSN_D2_DEVICE Tile tile(int64_t roi, int32_t number) const {
    const int32_t bin_tile = number / channel_tiles;
    Tile tile{};
    tile.roi = roi;
    tile.first_row = bin_tile / column_tiles * rows;
    tile.first_column = bin_tile % column_tiles * columns;
    tile.first_channel = number % channel_tiles * channels;
    tile.rows = std::min(rows, bin_rows - tile.first_row);
    tile.columns = std::min(columns, bin_columns - tile.first_column);
    tile.channels = std::min(channels, all_channels - tile.first_channel);
    return tile;
  }

  FSN_D2_DEVICE Tile tile(int64_t task) const {
    return tile(task / tiles(), static_cast<int32_t>(task % tiles()));
  }
};

}  // namespace fsn_d2
