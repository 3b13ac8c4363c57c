// Transposes a matrix, four by four where both sides are float32.

#pragma once

#include <cstdint>
#include <type_traits>

#include "vectors.h"

namespace fsn_d2 {

using Four = Lanes<float, 4>;

// The lanes of that number, of those of `a` and then those of `b`.
template <int... kLanes>
Four pick(Four a, Four b) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, kLanes...);
#else
  return __builtin_shuffle(a, b, Lanes<int32_t, 4>{kLanes...});
#endif
}

// rows [4][from_pitch] -> columns [4][to_pitch].
inline void transpose_4_by_4(const float* from, int64_t from_pitch, float* to, int64_t to_pitch) {
  Four a, b, c, d;
  load(from, a);
  load(from + from_pitch, b);
  load(from + 2 * from_pitch, c);
  load(from + 3 * from_pitch, d);
  const Four ab_low = pick<0, 4, 1, 5>(a, b);
  const Four ab_high = pick<2, 6, 3, 7>(a, b);
  const Four cd_low = pick<0, 4, 1, 5>(c, d);
  const Four cd_high = pick<2, 6, 3, 7>(c, d);
  store(pick<0, 1, 4, 5>(ab_low, cd_low), to);
  store(pick<2, 3, 6, 7>(ab_low, cd_low), to + to_pitch);
  store(pick<0, 1, 4, 5>(ab_high, cd_high), to + 2 * to_pitch);
  store(pick<2, 3, 6, 7>(ab_high, cd_high), to + 3 * to_pitch);
}

// to[column][row] = from[row][column]: `from` has rows `from_pitch` apart and columns `from_step`
// apart, `to` has columns `to_pitch` apart and rows side by side.
template <typename from_t, typename to_t>
void transpose(
    const from_t* from,
    int64_t from_pitch,
    int64_t from_step,
    int64_t rows,
    int64_t columns,
    to_t* to,
    int64_t to_pitch) {
  constexpr bool kVectors = std::is_same_v<from_t, float> && std::is_same_v<to_t, float>;
  const int64_t rows_in_fours = kVectors && from_step == 1 ? rows / 4 * 4 : 0;
  const int64_t columns_in_fours = kVectors && from_step == 1 ? columns / 4 * 4 : 0;
  if constexpr (kVectors) {
    for (int64_t column = 0; column < columns_in_fours; column += 4) {
      for (int64_t row = 0; row < rows_in_fours; row += 4) {
        transpose_4_by_4(
            from + row * from_pitch + column, from_pitch, to + column * to_pitch + row, to_pitch);
      }
    }
  }
  for (int64_t column = 0; column < columns; ++column) {
    for (int64_t row = column < columns_in_fours ? rows_in_fours : 0; row < rows; ++row) {
      to[column * to_pitch + row] = static_cast<to_t>(from[row * from_pitch + column * from_step]);
    }
  }
}

}  // namespace fsn_d2
