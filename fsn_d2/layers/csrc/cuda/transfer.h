// The kernels that only move data: a bank from one layout and type to another, and small tables
// from the host to the device.

#pragma once

#include "../banks.h"
#include "problem.h"

namespace fsn_d2 {

// Copies in squares of channels by columns through shared memory, so that both sides move along
// memory whichever of the two that is.
template <typename from_t, typename to_t>
struct CopyBank {
  static constexpr int kSide = 32;
  static constexpr int kPitch = kSide + 1;

  BankSize size;
  const from_t* from;
  BankStrides from_strides;
  to_t* to;
  BankStrides to_strides;

  int64_t tasks() const {
    return size.images * size.maps * size.height * squares(size.channels) * squares(size.width);
  }

  static constexpr int64_t shared_bytes() {
    return kSide * kPitch * sizeof(from_t);
  }

  template <typename Block>
  FSN_D2_DEVICE void operator()(const Block& block, int64_t tasks, char* shared) const {
    from_t* square = reinterpret_cast<from_t*>(shared);
    for (int64_t task = block.number(); task < tasks; task += block.blocks()) {
      const Corner corner = corner_of(task);
      for (int i = block.thread(); i < kSide * kSide; i += block.threads()) {
        const Place place = place_of(i, from_strides, corner);
        if (place.inside) {
          square[place.channel * kPitch + place.column] = from[place.offset];
        }
      }
      block.sync();
      for (int i = block.thread(); i < kSide * kSide; i += block.threads()) {
        const Place place = place_of(i, to_strides, corner);
        if (place.inside) {
          to[place.offset] = static_cast<to_t>(square[place.channel * kPitch + place.column]);
        }
      }
      block.sync();
    }
  }

 private:
  struct Corner {
    int64_t image, map, row, channel, column;
  };

  struct Place {
    bool inside;
    int channel, column;  // in the square
    int64_t offset;
  };

  static FSN_D2_HOST_AND_DEVICE int64_t squares(int64_t length) {
    return (length + kSide - 1) / kSide;
  }

  FSN_D2_DEVICE Corner corner_of(int64_t task) const {
    Corner corner{};
    corner.column = task % squares(size.width) * kSide;
    task /= squares(size.width);
    corner.channel = task % squares(size.channels) * kSide;
    task /= squares(size.channels);
    corner.row = task % size.height;
    task /= size.height;
    corner.map = task % size.maps;
    corner.image = task / size.maps;
    return corner;
  }

  // Neighbouring numbers are neighbours in memory.
  FSN_D2_DEVICE Place place_of(int i, const BankStrides& strides, const Corner& corner) const {
    const bool channels_run = strides.channel <= strides.column;
    const int slow = i / kSide;
    const int fast = i % kSide;
    Place place{};
    place.channel = channels_run ? fast : slow;
    place.column = channels_run ? slow : fast;
    const int64_t channel = corner.channel + place.channel;
    const int64_t column = corner.column + place.column;
    place.inside = channel < size.channels && column < size.width;
    place.offset = corner.image * strides.image + corner.map * strides.map +
        corner.row * strides.row + channel * strides.channel + column * strides.column;
    return place;
  }
};

// Copies a bank from one layout and type to another.
template <typename from_t, typename to_t, typename Machine>
void copy_bank(
    const Machine& machine,
    BankSize size,
    const from_t* from,
    const BankStrides& from_strides,
    to_t* to,
    const BankStrides& to_strides) {
  const auto rows_adjoin = [&](const BankStrides& strides) {
    return strides.row == size.width * strides.column;
  };
  if (rows_adjoin(from_strides) && rows_adjoin(to_strides)) {  // then they make one long row
    size.width *= size.height;
    size.height = size.width > 0 ? 1 : 0;
  }
  const CopyBank<from_t, to_t> copy{size, from, from_strides, to, to_strides};
  machine.launch("copy_bank", copy, copy.tasks(), copy.shared_bytes());
}

// Words that travel as an argument of the kernel: no wait, no pinned memory, and a CUDA graph can
// capture it.
struct StoreWords {
  static constexpr int64_t kWords = 480;  // arguments may take 4 KiB

  int64_t words[kWords];
  int64_t* target;
  int64_t count;

  template <typename Block>
  FSN_D2_DEVICE void operator()(const Block& block, int64_t, char*) const {
    for (int64_t i = block.thread(); i < count; i += block.threads()) {
      target[i] = words[i];
    }
  }
};

}  // namespace fsn_d2
