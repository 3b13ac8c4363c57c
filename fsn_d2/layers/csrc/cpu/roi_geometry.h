// Where a region of interest (RoI) samples a feature map.
//
// Bilinear pooling is separable: the average over a bin's grid of samples is
//     sum_y sum_x row_weight[y] * column_weight[x] * map[y][x],
// so each RoI needs one short list of weights per row of bins and one per column of bins. Building
// them is linear in the samples along one axis, and each cell of the map is read once per bin,
// however many samples fall on it.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace fsn_d2 {

// Samples along one side of a bin beyond this many are spread wider than one per cell. The limit
// keeps index arithmetic exact; it is only met by RoIs millions of cells wide.
constexpr int64_t kMaxGrid = int64_t{1} << 24;

// A cell of one axis and its weight.
template <typename scalar_t>
struct Tap {
  int64_t cell;
  scalar_t weight;
};

// The cells that each bin reads along one axis of one RoI, in ascending order, without those of
// weight zero. Reused from RoI to RoI, so that it allocates only while it grows.
template <typename scalar_t>
class AxisTaps {
 public:
  // `start` and `extent`: the RoI along this axis, in cells. `sampling_ratio`: samples per bin, 0
  // for one per cell rounded up. `axis_size`: cells of the map along this axis.
  void compute(
      scalar_t start,
      scalar_t extent,
      int64_t num_bins,
      int64_t sampling_ratio,
      int64_t axis_size) {
    taps_.clear();
    ends_.assign(num_bins, 0);
    axis_size_ = axis_size;
    grid_ = 1;
    if (!std::isfinite(start) || !std::isfinite(extent)) {  // too large for scalar_t
      return;
    }
    const scalar_t bin_size = extent / static_cast<scalar_t>(num_bins);
    grid_ = sampling_ratio > 0 ? sampling_ratio : adaptive_grid(bin_size);
    for (int64_t bin = 0; bin < num_bins; ++bin) {
      add_bin(start + static_cast<scalar_t>(bin) * bin_size, bin_size);
      ends_[bin] = taps_.size();
    }
  }

  const Tap<scalar_t>* begin(int64_t bin) const {
    return taps_.data() + (bin > 0 ? ends_[bin - 1] : 0);
  }

  const Tap<scalar_t>* end(int64_t bin) const {
    return taps_.data() + ends_[bin];
  }

  // Of all bins.
  const std::vector<Tap<scalar_t>>& all() const {
    return taps_;
  }

  // Samples along one side of a bin; not positive for an RoI without extent that is sampled
  // adaptively.
  int64_t grid() const {
    return grid_;
  }

 private:
  static int64_t adaptive_grid(scalar_t bin_size) {
    return static_cast<int64_t>(
        std::ceil(std::clamp(bin_size, scalar_t(-1), static_cast<scalar_t>(kMaxGrid))));
  }

  void add_bin(scalar_t bin_start, scalar_t bin_size) {
    bin_begin_ = taps_.size();
    int64_t first = 0;
    int64_t end = 0;
    samples_on_the_map(bin_start, bin_size, first, end);
    const auto grid = static_cast<scalar_t>(grid_);
    const bool ascending = bin_size >= 0;
    for (int64_t i = first; i < end; ++i) {
      const int64_t sample = ascending ? i : end - 1 - (i - first);
      const scalar_t position =
          bin_start + (static_cast<scalar_t>(sample) + scalar_t(0.5)) * bin_size / grid;
      if (!(position >= scalar_t(-1) && position <= static_cast<scalar_t>(axis_size_))) {
        continue;
      }
      const scalar_t inside = std::max(position, scalar_t(0));
      const int64_t low = std::min(static_cast<int64_t>(inside), axis_size_ - 1);
      const scalar_t fraction =
          low + 1 < axis_size_ ? inside - static_cast<scalar_t>(low) : scalar_t(0);
      add_tap(low, scalar_t(1) - fraction);
      add_tap(low + 1, fraction);
    }
  }

  // Samples come in ascending order, so a cell that has a tap already is one of the last two.
  void add_tap(int64_t cell, scalar_t weight) {
    if (weight == scalar_t(0)) {
      return;
    }
    for (size_t i = taps_.size(); i > bin_begin_ && taps_[i - 1].cell >= cell; --i) {
      if (taps_[i - 1].cell == cell) {
        taps_[i - 1].weight += weight;
        return;
      }
    }
    taps_.push_back({cell, weight});
  }

  // Bounds the samples of a bin that can lie on the map, so that a huge RoI costs no more than one
  // that covers the map. One sample of slack on either side absorbs the rounding; the caller tests
  // each position.
  void samples_on_the_map(
      scalar_t bin_start, scalar_t bin_size, int64_t& begin, int64_t& end) const {
    begin = 0;
    end = axis_size_ > 0 ? std::max<int64_t>(grid_, 0) : 0;
    if (end <= 2) {
      return;
    }
    const double step = static_cast<double>(bin_size) / static_cast<double>(grid_);
    if (!(std::abs(step) > 0)) {
      return;
    }
    const double at_low_edge = (-1.0 - static_cast<double>(bin_start)) / step - 0.5;
    const double at_high_edge =
        (static_cast<double>(axis_size_) - static_cast<double>(bin_start)) / step - 0.5;
    const auto limit = static_cast<double>(end);
    begin = static_cast<int64_t>(
        std::clamp(std::floor(std::min(at_low_edge, at_high_edge)) - 1, 0.0, limit));
    end = static_cast<int64_t>(
        std::clamp(std::ceil(std::max(at_low_edge, at_high_edge)) + 2, 0.0, limit));
  }

  int64_t axis_size_ = 0;
  int64_t grid_ = 0;
  size_t bin_begin_ = 0;      // where the taps of the bin being added start
  std::vector<size_t> ends_;  // of each bin's taps
  std::vector<Tap<scalar_t>> taps_;
};

}  // namespace fsn_d2
