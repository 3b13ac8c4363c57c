// The kernels that pool: forward, and what backward needs to begin with.

#pragma once

#include <cstring>
#include <limits>

#include "problem.h"

namespace fsn_d2 {

template <typename value_t, int kWidth>
struct alignas(sizeof(value_t) * kWidth) Pack {
  value_t values[kWidth];
};

// The taps of the bins of a tile along both axes, in shared memory.
template <typename scalar_t>
struct TileTaps {
  // One more than can be in use: lists then start in different banks of shared memory.
  static constexpr int kPitch = kTapsPerPass + 1;

  Tap<scalar_t>* row_taps;  // of the tile's rows of bins, then of its columns
  int* counts;
  int rows;

  FSN_D2_HOST_AND_DEVICE static int64_t bytes(int rows, int columns) {
    const int lists = (rows + columns + 3) / 4 * 4;  // keeps what follows aligned
    return lists * (kPitch * static_cast<int64_t>(sizeof(Tap<scalar_t>)) + 4);
  }

  FSN_D2_DEVICE TileTaps(char* shared, const Tile& tile) : rows(tile.rows) {
    const int lists = tile.rows + tile.columns;
    row_taps = reinterpret_cast<Tap<scalar_t>*>(shared);
    counts = reinterpret_cast<int*>(row_taps + lists * kPitch);
  }

  FSN_D2_DEVICE const Tap<scalar_t>* row(int i) const {
    return row_taps + i * kPitch;
  }

  FSN_D2_DEVICE const Tap<scalar_t>* column(int j) const {
    return row_taps + (rows + j) * kPitch;
  }

  FSN_D2_DEVICE int row_count(int i) const {
    return counts[i];
  }

  FSN_D2_DEVICE int column_count(int j) const {
    return counts[rows + j];
  }

  template <typename Block>
  FSN_D2_DEVICE void collect(
      const Block& block,
      const PlacedRoi<scalar_t>& roi,
      const Tile& tile,
      int32_t row_pass,
      int32_t column_pass) {
    for (int list = block.thread(); list < tile.rows + tile.columns; list += block.threads()) {
      Tap<scalar_t>* taps = row_taps + list * kPitch;
      counts[list] = list < rows
          ? roi.rows.collect_taps(tile.first_row + list, row_pass, taps)
          : roi.columns.collect_taps(tile.first_column + list - rows, column_pass, taps);
    }
  }
};

// Calls run(again) once the taps of each pass over a tile lie in shared memory; `again` after the
// first pass. Taps that are there already and serve every pass (`kept`) are not collected anew.
template <typename scalar_t, typename Block, typename Run>
FSN_D2_DEVICE void for_each_pass(
    const Block& block,
    const PlacedRoi<scalar_t>& roi,
    const Tile& tile,
    TileTaps<scalar_t>& taps,
    bool kept,
    const Run& run) {
  const int32_t row_passes = roi.rows.passes();
  const int32_t column_passes = roi.columns.passes();
  const bool one_pass = row_passes == 1 && column_passes == 1;
  for (int32_t a = 0; a < row_passes; ++a) {
    for (int32_t b = 0; b < column_passes; ++b) {
      if (!(kept && one_pass)) {
        taps.collect(block, roi, tile, a, b);
        block.sync();
      }
      run(a + b > 0);
      block.sync();
    }
  }
}

// Pooled features of a tile in shared memory: [slots of a group][bins][channels].
template <typename scalar_t>
struct PooledTile {
  scalar_t* data;
  int pitch;  // odd, so that the bins of a channel lie in different banks of shared memory
  int bins;

  FSN_D2_HOST_AND_DEVICE static int64_t bytes(int slots, int bins, int channels) {
    return static_cast<int64_t>(slots) * bins * (channels | 1) * sizeof(scalar_t);
  }

  FSN_D2_DEVICE PooledTile(char* shared, const Tile& tile)
      : data(reinterpret_cast<scalar_t*>(shared)), pitch(tile.channels | 1), bins(tile.bins()) {}

  FSN_D2_DEVICE scalar_t& at(int slot, int bin, int channel) const {
    return data[(slot * bins + bin) * pitch + channel];
  }
};

// Pools tiles of one problem.
template <typename value_t, int kWidth, typename scalar_t>
struct TilePooler {
  Problem<scalar_t> problem;
  const Bank* banks;

  // All slots of a group, into `pooled`. Ends with a sync.
  template <typename Block>
  FSN_D2_DEVICE void pool(
      const Block& block,
      const PlacedRoi<scalar_t>& roi,
      const Tile& tile,
      int32_t group,
      TileTaps<scalar_t>& taps,
      const PooledTile<scalar_t>& pooled) const {
    if (!roi.valid) {
      fill_with_nan(block, tile, pooled);
      return;
    }
    for_each_pass(block, roi, tile, taps, group > 0, [&](bool again) {
      const int packs = tile.channels / kWidth;
      for (int item = block.thread(); item < tile.bins() * packs; item += block.threads()) {
        pool_item(roi, tile, group, taps, item / packs, item % packs * kWidth, again, pooled);
      }
    });
  }

 private:
  template <typename Block>
  FSN_D2_DEVICE void fill_with_nan(
      const Block& block, const Tile& tile, const PooledTile<scalar_t>& pooled) const {
    const int values = problem.slots_per_group() * tile.bins() * pooled.pitch;
    for (int i = block.thread(); i < values; i += block.threads()) {
      pooled.data[i] = std::numeric_limits<scalar_t>::quiet_NaN();
    }
    block.sync();
  }

  // kWidth channels of one bin, of all slots of the group.
  FSN_D2_DEVICE void pool_item(
      const PlacedRoi<scalar_t>& roi,
      const Tile& tile,
      int32_t group,
      const TileTaps<scalar_t>& taps,
      int bin,
      int channel,
      bool again,
      const PooledTile<scalar_t>& pooled) const {
    for (int slot = 0; slot < problem.slots_per_group(); ++slot) {
      scalar_t sums[kWidth] = {};
      const SourceRange sources = problem.sources_of(group, slot);
      for (int32_t source = sources.first; source < sources.end; ++source) {
        add_source(roi, tile, source, taps, bin, channel, sums);
      }
      FSN_D2_UNROLL for (int c = 0; c < kWidth; ++c) {
        scalar_t& target = pooled.at(slot, bin, channel + c);
        target = again ? target + sums[c] : sums[c];
      }
    }
  }

  FSN_D2_DEVICE void add_source(
      const PlacedRoi<scalar_t>& roi,
      const Tile& tile,
      int32_t source,
      const TileTaps<scalar_t>& taps,
      int bin,
      int channel,
      scalar_t (&sums)[kWidth]) const {
    const int i = bin / tile.columns;
    const int j = bin % tile.columns;
    const int64_t map =
        problem.map_indices[source].at(roi.number, tile.first_row + i, tile.first_column + j);
    if (map < 0) {
      FSN_D2_UNROLL for (int c = 0; c < kWidth; ++c) {
        sums[c] = std::numeric_limits<scalar_t>::quiet_NaN();
      }
      return;
    }
    const Bank& bank = banks[source * problem.num_levels + roi.level];
    const value_t* cells = static_cast<const value_t*>(bank.data) + roi.image * bank.image_stride +
        problem.map_offsets[bank.first_map + map] + tile.first_channel + channel;
    const int64_t row_stride = bank.row_stride;
    const int64_t column_stride = bank.column_stride;
    const Tap<scalar_t>* rows = taps.row(i);
    const Tap<scalar_t>* columns = taps.column(j);
    const int row_count = taps.row_count(i);
    const int column_count = taps.column_count(j);
    for (int r = 0; r < row_count; ++r) {
      const Tap<scalar_t> row = rows[r];
      const value_t* line = cells + row.cell * row_stride;
      const scalar_t row_weight = row.weight * roi.share;
      FSN_D2_UNROLL_4 for (int s = 0; s < column_count; ++s) {
        const Tap<scalar_t> column = columns[s];
        const auto cell =
            *reinterpret_cast<const Pack<value_t, kWidth>*>(line + column.cell * column_stride);
        const scalar_t weight = row_weight * column.weight;
        FSN_D2_UNROLL for (int c = 0; c < kWidth; ++c) {
          sums[c] = std::fma(weight, static_cast<scalar_t>(cell.values[c]), sums[c]);
        }
      }
    }
  }
};

// Pools, merges and writes output [rois, groups * C, bins].
template <typename value_t, int kWidth, typename scalar_t>
struct PoolRois {
  TilePooler<value_t, kWidth, scalar_t> pooler;
  Tiling tiling;
  int64_t taps_bytes;
  value_t* output;

  template <typename Block>
  FSN_D2_DEVICE void operator()(const Block& block, int64_t tasks, char* shared) const {
    const Problem<scalar_t>& problem = pooler.problem;
    for (int64_t task = block.number(); task < tasks; task += block.blocks()) {
      const Tile tile = tiling.tile(task);
      const auto& roi = place_in_shared(block, problem, tile.roi, shared);
      TileTaps<scalar_t> taps(shared + kRoiBytes<scalar_t>, tile);
      const PooledTile<scalar_t> pooled(shared + kRoiBytes<scalar_t> + taps_bytes, tile);
      for (int32_t group = 0; group < problem.groups(); ++group) {
        pooler.pool(block, roi, tile, group, taps, pooled);
        write(block, tile, group, pooled);
        block.sync();
      }
    }
  }

 private:
  // Neighbouring threads write side by side.
  template <typename Block>
  FSN_D2_DEVICE void write(
      const Block& block,
      const Tile& tile,
      int32_t group,
      const PooledTile<scalar_t>& pooled) const {
    const Problem<scalar_t>& problem = pooler.problem;
    for (int i = block.thread(); i < tile.bins() * tile.channels; i += block.threads()) {
      const auto [bin, channel] = TileValue::nth(i, tile, problem);
      scalar_t value = pooled.at(0, bin, channel);
      if (problem.multiplies) {
        const scalar_t factor = pooled.at(1, bin, channel);
        value *= problem.relu && factor < scalar_t(0) ? scalar_t(0) : factor;
      }
      output[problem.output_offset(
          tile.roi, group, tile.first_channel + channel, tile.bin(bin, problem.bin_columns))] =
          static_cast<value_t>(value);
    }
  }
};

// From the gradient of the output [rois, groups * C, bins] to that of the slots
// [rois, bins, slots, C]. What a product needs of the pooled features is pooled once more.
template <typename value_t, int kWidth, typename scalar_t>
struct PrepareGradients {
  TilePooler<value_t, kWidth, scalar_t> pooler;
  Tiling tiling;
  int64_t taps_bytes;
  const value_t* grad_output;
  scalar_t* grad_slots;

  template <typename Block>
  FSN_D2_DEVICE void operator()(const Block& block, int64_t tasks, char* shared) const {
    const Problem<scalar_t>& problem = pooler.problem;
    for (int64_t task = block.number(); task < tasks; task += block.blocks()) {
      const Tile tile = tiling.tile(task);
      const auto& roi = place_in_shared(block, problem, tile.roi, shared);
      TileTaps<scalar_t> taps(shared + kRoiBytes<scalar_t>, tile);
      const PooledTile<scalar_t> pooled(shared + kRoiBytes<scalar_t> + taps_bytes, tile);
      for (int32_t group = 0; group < problem.groups(); ++group) {
        if (problem.multiplies) {
          pooler.pool(block, roi, tile, group, taps, pooled);
        }
        read(block, tile, group, pooled);
        block.sync();
        write(block, tile, group, pooled);
        block.sync();
      }
    }
  }

 private:
  // In place of the pooled features, with neighbouring threads side by side.
  template <typename Block>
  FSN_D2_DEVICE void read(
      const Block& block,
      const Tile& tile,
      int32_t group,
      const PooledTile<scalar_t>& pooled) const {
    const Problem<scalar_t>& problem = pooler.problem;
    for (int i = block.thread(); i < tile.bins() * tile.channels; i += block.threads()) {
      const auto [bin, channel] = TileValue::nth(i, tile, problem);
      const auto grad = static_cast<scalar_t>(grad_output[problem.output_offset(
          tile.roi, group, tile.first_channel + channel, tile.bin(bin, problem.bin_columns))]);
      const bool lacks_map = problem.lacks_map(
          tile.roi, tile.first_row + bin / tile.columns, tile.first_column + bin % tile.columns);
      scalar_t& first = pooled.at(0, bin, channel);
      if (!problem.multiplies) {
        first = lacks_map ? scalar_t(0) : grad;
        continue;
      }
      scalar_t& second = pooled.at(1, bin, channel);
      const scalar_t roi = first;
      const scalar_t attention = second;
      const bool off = lacks_map || (problem.relu && !(attention > scalar_t(0)));
      first = off ? scalar_t(0) : grad * attention;
      second = off ? scalar_t(0) : grad * roi;
    }
  }

  // Neighbouring threads write neighbouring channels.
  template <typename Block>
  FSN_D2_DEVICE void write(
      const Block& block,
      const Tile& tile,
      int32_t group,
      const PooledTile<scalar_t>& pooled) const {
    const Problem<scalar_t>& problem = pooler.problem;
    const int values = tile.bins() * tile.channels;
    for (int slot = 0; slot < problem.slots_per_group(); ++slot) {
      for (int i = block.thread(); i < values; i += block.threads()) {
        const int channel = i % tile.channels;
        const int bin = i / tile.channels;
        const int64_t row = tile.roi * problem.bins() + tile.bin(bin, problem.bin_columns);
        const int64_t to = row * problem.slots() + group * problem.slots_per_group() + slot;
        grad_slots[to * problem.channels + tile.first_channel + channel] =
            pooled.at(slot, bin, channel);
      }
    }
  }
};

}  // namespace fsn_d2
