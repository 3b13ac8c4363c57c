// Vectors of scalars, as the compiler's own vector types.

#pragma once

#include <cstdint>
#include <cstring>

// Kernels are inlined whole into functions that carry a target (capability.h). Not to be inlined
// would mean to be compiled for the plain machine.
#define FSN_D2_INLINE inline __attribute__((always_inline))
#define FSN_D2_INLINE_LAMBDA __attribute__((always_inline))
// For geometry, which is to round alike everywhere: inlined into such a function, products and sums
// would be contracted where the machine can.
#define FSN_D2_OUT_OF_LINE __attribute__((noinline))

// On a loop over the vectors of a panel: keeps them in registers.
#if defined(__clang__)
#define FSN_D2_UNROLL _Pragma("unroll")
#else
#define FSN_D2_UNROLL _Pragma("GCC unroll 8")
#endif

namespace fsn_d2 {

template <typename scalar_t, int kLanes>
struct LanesOf {
  typedef scalar_t type __attribute__((vector_size(kLanes * sizeof(scalar_t))));
};

template <typename scalar_t>
struct LanesOf<scalar_t, 1> {
  using type = scalar_t;
};

// kLanes scalars that are computed with at once.
template <typename scalar_t, int kLanes>
using Lanes = typename LanesOf<scalar_t, kLanes>::type;

template <typename vector_t, typename scalar_t>
FSN_D2_INLINE void load(const scalar_t* from, vector_t& to) {
  std::memcpy(&to, from, sizeof(vector_t));
}

template <typename vector_t, typename scalar_t>
FSN_D2_INLINE void store(const vector_t& from, scalar_t* to) {
  std::memcpy(to, &from, sizeof(vector_t));
}

// kCount vectors of kLanes channels, side by side.
template <typename scalar_t, int kLanes, int kCount>
struct Panel {
  using vector_t = Lanes<scalar_t, kLanes>;
  static constexpr int lanes = kLanes;
  static constexpr int count = kCount;
};

// At most one vector of each shorter width remains.
template <typename scalar_t, int kLanes, typename Visit>
FSN_D2_INLINE void for_each_short_panel(int64_t channel, int64_t channels, const Visit& visit) {
  if (channels - channel >= kLanes) {
    visit(Panel<scalar_t, kLanes, 1>{}, channel);
    channel += kLanes;
  }
  if constexpr (kLanes > 1) {
    for_each_short_panel<scalar_t, kLanes / 2>(channel, channels, visit);
  }
}

// Cuts [channel, channels) into panels and calls visit(panel, first channel) for each: as many full
// vectors at once as the registers hold, then ever shorter ones for the rest.
template <typename scalar_t, int kLanes, typename Visit>
FSN_D2_INLINE void for_each_panel(int64_t channel, int64_t channels, const Visit& visit) {
  constexpr int kMost = 8;
  for (; channels - channel >= kMost * kLanes; channel += kMost * kLanes) {
    visit(Panel<scalar_t, kLanes, kMost>{}, channel);
  }
  const int64_t whole = (channels - channel) / kLanes;
  switch (whole) {
    case 7:
      visit(Panel<scalar_t, kLanes, 7>{}, channel);
      break;
    case 6:
      visit(Panel<scalar_t, kLanes, 6>{}, channel);
      break;
    case 5:
      visit(Panel<scalar_t, kLanes, 5>{}, channel);
      break;
    case 4:
      visit(Panel<scalar_t, kLanes, 4>{}, channel);
      break;
    case 3:
      visit(Panel<scalar_t, kLanes, 3>{}, channel);
      break;
    case 2:
      visit(Panel<scalar_t, kLanes, 2>{}, channel);
      break;
    case 1:
      visit(Panel<scalar_t, kLanes, 1>{}, channel);
      break;
    default:
      break;
  }
  channel += whole * kLanes;
  if constexpr (kLanes > 1) {
    for_each_short_panel<scalar_t, kLanes / 2>(channel, channels, visit);
  }
}

// Whole vectors of one width over [channel, channels), the last of them moved back so that it ends
// there: its first channels can be in two vectors.
template <typename scalar_t, int kLanes, typename Visit>
FSN_D2_INLINE void cover_with_one_panel(int64_t channel, int64_t channels, const Visit& visit) {
  const int64_t last = channels - kLanes - channel;
  switch ((channels - channel + kLanes - 1) / kLanes) {
    case 8:
      return visit(Panel<scalar_t, kLanes, 8>{}, channel, last);
    case 7:
      return visit(Panel<scalar_t, kLanes, 7>{}, channel, last);
    case 6:
      return visit(Panel<scalar_t, kLanes, 6>{}, channel, last);
    case 5:
      return visit(Panel<scalar_t, kLanes, 5>{}, channel, last);
    case 4:
      return visit(Panel<scalar_t, kLanes, 4>{}, channel, last);
    case 3:
      return visit(Panel<scalar_t, kLanes, 3>{}, channel, last);
    case 2:
      return visit(Panel<scalar_t, kLanes, 2>{}, channel, last);
    case 1:
      return visit(Panel<scalar_t, kLanes, 1>{}, channel, last);
    default:
      return;
  }
}

// Covers [0, channels) with panels of whole vectors and calls visit(panel, first channel, place of
// the panel's last vector) for each; its other vectors lie side by side. Some channels are visited
// twice: for results that are written, not added to, and few vectors for every number of channels.
template <typename scalar_t, int kLanes, typename Visit>
FSN_D2_INLINE void for_each_covering_panel(int64_t channels, const Visit& visit) {
  if constexpr (kLanes > 1) {
    if (channels < kLanes) {
      return for_each_covering_panel<scalar_t, kLanes / 2>(channels, visit);
    }
  }
  constexpr int kMost = 8;
  int64_t channel = 0;
  for (; channels - channel > kMost * kLanes; channel += kMost * kLanes) {
    visit(Panel<scalar_t, kLanes, kMost>{}, channel, int64_t{(kMost - 1) * kLanes});
  }
  cover_with_one_panel<scalar_t, kLanes>(channel, channels, visit);
}

}  // namespace fsn_d2
