// The values of one RoI on their way to and from tensors [K, C, PH, PW].

#pragma once

#include <cstdint>

#include "../arguments.h"
#include "../banks.h"
#include "transpose.h"
#include "vectors.h"

namespace fsn_d2 {

// RoI k between bins [PH * PW, slots * C] and a tensor [K, output channels, PH, PW] of any
// floating type. A pointer to it, so that the kernels need not be compiled for every type.
template <typename scalar_t>
using WriteRoi = void (*)(const Pooling& pooling, const scalar_t* bins, int64_t k, void* output);
template <typename scalar_t>
using ReadRoi = void (*)(const Pooling& pooling, const void* input, int64_t k, scalar_t* bins);

template <typename from_t, typename to_t>
void convert(const from_t* from, int64_t count, to_t* to) {
  for (int64_t i = 0; i < count; ++i) {
    to[i] = static_cast<to_t>(from[i]);
  }
}

template <typename scalar_t, typename output_t>
void write_roi(const Pooling& pooling, const scalar_t* bins, int64_t k, void* output) {
  const int64_t channels = pooling.output_channels();
  auto* target = static_cast<output_t*>(output) + k * channels * pooling.bins();
  if (pooling.channels_last()) {
    convert(bins, pooling.bins() * channels, target);
    return;
  }
  transpose(
      bins,
      pooling.slots() * pooling.channels,
      1,
      pooling.bins(),
      channels,
      target,
      pooling.bins());
}

template <typename scalar_t, typename input_t>
void read_roi(const Pooling& pooling, const void* input, int64_t k, scalar_t* bins) {
  const int64_t channels = pooling.output_channels();
  const auto* source = static_cast<const input_t*>(input) + k * channels * pooling.bins();
  if (pooling.channels_last()) {
    convert(source, pooling.bins() * channels, bins);
    return;
  }
  transpose(
      source,
      pooling.bins(),
      1,
      channels,
      pooling.bins(),
      bins,
      pooling.slots() * pooling.channels);
}

// Where pooled RoIs go.
template <typename scalar_t>
struct RoiWriter {
  WriteRoi<scalar_t> write;
  void* output;
  int64_t bytes;  // of a RoI
  bool in_place;  // whether bins are the output as it is

  // Where RoI k is to be pooled to, or null: it is to be written.
  scalar_t* place_of(int64_t k) const {
    return in_place ? reinterpret_cast<scalar_t*>(static_cast<char*>(output) + k * bytes) : nullptr;
  }

  // Fetches the memory that RoI k will be written to, while it is pooled.
  FSN_D2_INLINE void prefetch(int64_t k) const {
    const char* start = static_cast<const char*>(output) + k * bytes;
    for (int64_t byte = 0; byte < bytes; byte += 64) {
      __builtin_prefetch(start + byte, 1);
    }
  }
};

template <typename scalar_t>
RoiWriter<scalar_t> writer_to(const Tensor& output, const Pooling& pooling) {
  RoiWriter<scalar_t> writer{nullptr, output.mutable_data_ptr(), 0, false};
  for_float_type(output.scalar_type(), [&](auto zero) {
    using output_t = decltype(zero);
    writer.write = write_roi<scalar_t, output_t>;
    writer.in_place = pooling.channels_last() && std::is_same_v<scalar_t, output_t>;
    writer.bytes = pooling.output_channels() * pooling.bins() * sizeof(output_t);
  });
  return writer;
}

template <typename scalar_t>
ReadRoi<scalar_t> reader_of(const Tensor& input) {
  ReadRoi<scalar_t> read = nullptr;
  for_float_type(
      input.scalar_type(), [&](auto zero) { read = read_roi<scalar_t, decltype(zero)>; });
  return read;
}

}  // namespace fsn_d2
