// How a backward shares out its work.
//
// Threads share out rows of the maps, not RoIs: no two write the same cell, and every cell adds its
// terms in the order of the RoIs, so the result does not depend on the number of threads.

#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include "../arguments.h"

namespace fsn_d2 {

constexpr int64_t kChunk = 64;  // RoIs whose gradients are prepared before they are added

// The rows of all levels and images are counted one after the other: where each level's start, and
// where they end.
inline std::vector<int64_t> first_rows_of_levels(const Pooling& pooling) {
  std::vector<int64_t> first_rows{0};
  for (const Level& level : pooling.levels) {
    first_rows.push_back(first_rows.back() + pooling.images * level.height);
  }
  return first_rows;
}

// Cuts rows into `parts` of about equal work, given per row.
inline std::vector<int64_t> equal_parts(const std::vector<int64_t>& work, int64_t parts) {
  const int64_t total = std::accumulate(work.begin(), work.end(), int64_t{0});
  std::vector<int64_t> cuts{0};
  int64_t done = 0;
  for (size_t row = 0; row < work.size() && static_cast<int64_t>(cuts.size()) < parts; ++row) {
    done += work[row];
    if (done * parts >= total * static_cast<int64_t>(cuts.size())) {
      cuts.push_back(static_cast<int64_t>(row) + 1);
    }
  }
  cuts.resize(parts + 1, static_cast<int64_t>(work.size()));
  return cuts;
}

// Chunk by chunk: prepare(first of the chunk, begin, end) for RoIs of the visiting order, then
// weigh(size of the chunk, work per row), then add(size of the chunk, begin, end) for rows.
template <typename Prepare, typename Weigh, typename Add>
void add_by_rows(
    const Pooling& pooling, const Prepare& prepare, const Weigh& weigh, const Add& add) {
  const int64_t all_rows = first_rows_of_levels(pooling).back();
  const auto threads = static_cast<int64_t>(torch::stable::get_num_threads());
  for (int64_t first = 0; first < pooling.rois; first += kChunk) {
    const int64_t size = std::min(kChunk, pooling.rois - first);
    torch::stable::parallel_for(
        first, first + size, 1, [&](int64_t begin, int64_t end) { prepare(first, begin, end); });
    std::vector<int64_t> work(all_rows, 0);
    weigh(size, work);
    const std::vector<int64_t> cuts = equal_parts(work, threads);
    torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; ++part) {
        add(size, cuts[part], cuts[part + 1]);
      }
    });
  }
}

}  // namespace fsn_d2
