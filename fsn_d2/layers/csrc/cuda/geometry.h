// Where a RoI samples a feature map, as device code: the arithmetic of cpu/roi_geometry.h without
// containers. Compiled without contraction of products and sums (setup.py), it rounds as there on a
// CPU whose compiler does not contract them either, as on x86-64.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "../device.h"

#if defined(__CUDACC__)
#define FSN_D2_UNROLL _Pragma("unroll")
#define FSN_D2_UNROLL_4 _Pragma("unroll 4")
#else  // tests compile the same code for the host
#define FSN_D2_UNROLL
#define FSN_D2_UNROLL_4
#endif

namespace fsn_d2 {

constexpr int32_t kMaxGrid = int32_t{1} << 24;  // as in cpu/roi_geometry.h

// Samples of a bin along one axis that become taps at once. Bins with more take several passes, so
// the taps of a tile of bins fit into shared memory whatever the size of the map.
constexpr int kSamplesPerPass = 16;
constexpr int kTapsPerPass = 2 * kSamplesPerPass;

// A cell of one axis and its weight.
template <typename scalar_t>
struct Tap {
  int32_t cell;
  scalar_t weight;
};

// Samples [first, end) of a bin.
struct SampleRange {
  int32_t first, end;
};

// A RoI along one axis, in cells.
template <typename scalar_t>
struct Axis {
  scalar_t start, bin_size;
  int32_t grid;       // samples per bin; 0: none
  int32_t cells;      // of the map
  scalar_t rounding;  // how far a computed position can be off

  FSN_D2_DEVICE static Axis place(
      scalar_t start, scalar_t extent, int32_t bins, int32_t sampling_ratio, int32_t cells) {
    const scalar_t bin_size = extent / static_cast<scalar_t>(bins);
    const scalar_t slack = scalar_t(8) * std::numeric_limits<scalar_t>::epsilon();
    const scalar_t rounding = slack * std::abs(start) + slack * std::abs(extent);  // always finite
    int32_t grid = sampling_ratio;
    if (!std::isfinite(start) || !std::isfinite(extent) || cells <= 0) {
      grid = 0;
    } else if (sampling_ratio == 0) {
      grid = static_cast<int32_t>(
          std::ceil(std::clamp(bin_size, scalar_t(0), static_cast<scalar_t>(kMaxGrid))));
    }
    Axis axis{start, bin_size, grid, cells, rounding};
    if (!axis.may_touch(0, cells, bins)) {
      axis.grid = 0;  // far from the map, where rounding may exceed a bin and leave nothing out
    }
    return axis;
  }

  // Passes after which every bin is done: at least one, so that results are written.
  FSN_D2_DEVICE int32_t passes() const {
    if (grid <= kSamplesPerPass) {
      return 1;
    }
    const double step = std::abs(static_cast<double>(bin_size)) / static_cast<double>(grid);
    const double span = static_cast<double>(cells) + 1 + 2 * static_cast<double>(rounding);
    const auto all = static_cast<double>(grid);
    const double samples = step > 0 ? std::min(all, span / step + 6) : all;
    return (static_cast<int32_t>(samples) + kSamplesPerPass) / kSamplesPerPass;
  }

  // Writes what a bin reads in one pass, cells ascending, without those of weight zero; returns
  // how many taps that are, at most kTapsPerPass.
  FSN_D2_DEVICE int collect_taps(int32_t bin, int32_t pass, Tap<scalar_t>* taps) const {
    const SampleRange range = samples_between(bin, -1.0, static_cast<double>(cells));
    const int32_t end = std::min(range.end - range.first, (pass + 1) * kSamplesPerPass);
    int count = 0;
    for (int32_t n = pass * kSamplesPerPass; n < end; ++n) {
      const Sample at = sample(bin, range, n);
      if (at.on_the_map) {
        count = add_tap(taps, count, at.low, scalar_t(1) - at.fraction);
        count = add_tap(taps, count, at.low + 1, at.fraction);
      }
    }
    return count;
  }

  // The weight by which a bin reads one cell, over all of its samples.
  FSN_D2_DEVICE scalar_t weight_of(int32_t bin, int32_t cell) const {
    const auto middle = static_cast<double>(cell);
    const SampleRange range = samples_between(bin, middle - 1, middle + 1);
    scalar_t weight = 0;
    for (int32_t n = 0; n < range.end - range.first; ++n) {
      const Sample at = sample(bin, range, n);
      if (at.on_the_map && at.low == cell) {
        weight += scalar_t(1) - at.fraction;
      } else if (at.on_the_map && at.low + 1 == cell) {
        weight += at.fraction;
      }
    }
    return weight;
  }

  // Whether any bin may read one of the cells [first, end).
  FSN_D2_DEVICE bool may_touch(int32_t first, int32_t end, int32_t bins) const {
    const scalar_t stop = bin_start(bins);
    return grid > 0 && std::max(start, stop) + rounding >= static_cast<scalar_t>(first - 1) &&
        std::min(start, stop) - rounding <= static_cast<scalar_t>(end);
  }

 private:
  // A sample reads cell `low` by 1 - fraction and the next one by fraction.
  struct Sample {
    bool on_the_map;
    int32_t low;
    scalar_t fraction;
  };

  FSN_D2_DEVICE scalar_t bin_start(int32_t bin) const {
    return start + static_cast<scalar_t>(bin) * bin_size;
  }

  // The n-th sample of `range` in the order of the cells.
  FSN_D2_DEVICE Sample sample(int32_t bin, const SampleRange& range, int32_t n) const {
    const int32_t number = bin_size >= 0 ? range.first + n : range.end - 1 - n;
    const scalar_t position = bin_start(bin) +
        (static_cast<scalar_t>(number) + scalar_t(0.5)) * bin_size / static_cast<scalar_t>(grid);
    if (!(position >= scalar_t(-1) && position <= static_cast<scalar_t>(cells))) {
      return {false, 0, scalar_t(0)};
    }
    const scalar_t inside = std::max(position, scalar_t(0));
    const int32_t low = std::min(static_cast<int32_t>(inside), cells - 1);
    return {true, low, low + 1 < cells ? inside - static_cast<scalar_t>(low) : scalar_t(0)};
  }

  // Bounds the samples of a bin that can lie in [low, high], so that a huge RoI costs no more than
  // one that covers the map. A few too many may be among them; sample() tests each position.
  FSN_D2_DEVICE SampleRange samples_between(int32_t bin, double low, double high) const {
    if (grid <= kSamplesPerPass) {
      return {0, grid};
    }
    const double step = static_cast<double>(bin_size) / static_cast<double>(grid);
    if (!(std::abs(step) > 0)) {
      return {0, grid};
    }
    const auto origin = static_cast<double>(bin_start(bin));
    const double at_low = (low - rounding - origin) / step - 0.5;
    const double at_high = (high + rounding - origin) / step - 0.5;
    const double first = std::floor(std::min(at_low, at_high)) - 1;
    const double end = std::ceil(std::max(at_low, at_high)) + 2;
    const auto limit = static_cast<double>(grid);
    return {
        static_cast<int32_t>(std::clamp(first, 0.0, limit)),
        static_cast<int32_t>(std::clamp(end, 0.0, limit))};
  }

  // Samples come in the order of the cells, so a cell that has a tap is one of the last two.
  FSN_D2_DEVICE static int add_tap(Tap<scalar_t>* taps, int count, int32_t cell, scalar_t weight) {
    if (weight == scalar_t(0)) {
      return count;
    }
    for (int i = count - 1; i >= 0 && taps[i].cell >= cell; --i) {
      if (taps[i].cell == cell) {
        taps[i].weight += weight;
        return count;
      }
    }
    taps[count] = {cell, weight};
    return count + 1;
  }
};

}  // namespace fsn_d2
