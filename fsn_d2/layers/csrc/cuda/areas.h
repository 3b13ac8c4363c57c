// How the maps are cut into areas for a gradient by gather: a block owns an area of cells and walks
// over the RoIs in order. Nobody else writes there and every cell adds its terms in one order, so
// the result is the same in every run, at no memory.

#pragma once

#include <algorithm>
#include <cstdint>

#include "problem.h"

namespace fsn_d2 {

// Cells of one level and image, and a range of channels.
struct Area {
  int64_t image;
  int32_t level;
  int32_t first_row, first_column, first_channel;
  int32_t rows, columns, channels;

  FSN_D2_DEVICE int cells() const {
    return rows * columns;
  }
};

constexpr int kAreaRows = 8;
constexpr int kAreaColumns = 8;
constexpr int kAreaChannels = 64;

// How many areas one level makes.
FSN_D2_HOST_AND_DEVICE int64_t areas_of(int64_t images, int64_t channels, const Level& level) {
  return images * parts_of<int64_t>(level.height, kAreaRows) *
      parts_of<int64_t>(level.width, kAreaColumns) * parts_of<int64_t>(channels, kAreaChannels);
}

inline int64_t areas_of(const Pooling& pooling) {
  int64_t areas = 0;
  for (const Level& level : pooling.levels) {
    areas += areas_of(pooling.images, pooling.channels, level);
  }
  return areas;
}

// The area of one task.
template <typename scalar_t>
FSN_D2_DEVICE Area area_of(const Problem<scalar_t>& problem, int64_t task) {
  Area area{};
  while (task >= areas_of(problem.images, problem.channels, problem.levels[area.level])) {
    task -= areas_of(problem.images, problem.channels, problem.levels[area.level]);
    ++area.level;
  }
  const Level& level = problem.levels[area.level];
  const auto height = static_cast<int32_t>(level.height);
  const auto width = static_cast<int32_t>(level.width);
  const int32_t channel_parts = parts_of(problem.channels, kAreaChannels);
  const int32_t column_parts = parts_of(width, kAreaColumns);
  const int32_t row_parts = parts_of(height, kAreaRows);
  area.first_channel = static_cast<int32_t>(task % channel_parts) * kAreaChannels;
  task /= channel_parts;
  area.first_column = static_cast<int32_t>(task % column_parts) * kAreaColumns;
  task /= column_parts;
  area.first_row = static_cast<int32_t>(task % row_parts) * kAreaRows;
  area.image = task / row_parts;
  area.rows = std::min(int{kAreaRows}, height - area.first_row);
  area.columns = std::min(int{kAreaColumns}, width - area.first_column);
  area.channels = std::min(int{kAreaChannels}, problem.channels - area.first_channel);
  return area;
}

}  // namespace fsn_d2
