// What the host prepares for the kernels of every op: tiles, readable banks, and the tables on the
// device.

#pragma once

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#include "../banks.h"
#include "pooling.h"
#include "transfer.h"

namespace fsn_d2 {

constexpr int64_t kTileBins = 64;          // of a tile, at most
constexpr int64_t kTileSide = 16;          // bins along one side of a tile, at most
constexpr int64_t kTileBytes = 28 * 1024;  // pooled features of a tile, about

// The length of equal parts of `size` that are at most `most` long.
inline int64_t even_part(int64_t size, int64_t most) {
  const int64_t parts = std::max<int64_t>(parts_of(size, std::max<int64_t>(most, 1)), 1);
  return parts_of(size, parts);
}

// Cuts bins, and channels in multiples of `width` so that their values fit into shared memory.
inline Tiling tiling_of(const Pooling& pooling, int64_t bytes_per_bin, int64_t width) {
  Tiling tiling{};
  const int64_t columns = even_part(pooling.bin_columns, kTileSide);
  const int64_t rows = even_part(pooling.bin_rows, std::min(kTileSide, kTileBins / columns));
  const int64_t most_channels = bytes_per_bin > 0 ? kTileBytes / (bytes_per_bin * rows * columns)
                                                  : std::max<int64_t>(pooling.channels, 1);
  const int64_t channels = parts_of(even_part(pooling.channels, most_channels), width) * width;
  tiling.rows = static_cast<int32_t>(rows);
  tiling.columns = static_cast<int32_t>(columns);
  tiling.channels = static_cast<int32_t>(channels);
  tiling.bin_rows = static_cast<int32_t>(pooling.bin_rows);
  tiling.bin_columns = static_cast<int32_t>(pooling.bin_columns);
  tiling.all_channels = static_cast<int32_t>(pooling.channels);
  tiling.row_tiles = static_cast<int32_t>(parts_of(pooling.bin_rows, rows));
  tiling.column_tiles = static_cast<int32_t>(parts_of(pooling.bin_columns, columns));
  tiling.channel_tiles =
      channels > 0 ? static_cast<int32_t>(parts_of(pooling.channels, channels)) : 0;
  return tiling;
}

inline int64_t tasks_of(const Pooling& pooling, const Tiling& tiling) {
  return pooling.rois * tiling.tiles();
}

// Tensors may be large, but the kernels count within a map's side and a RoI's values in 32 bits.
inline void require_countable(const Pooling& pooling) {
  constexpr int64_t kMost = int64_t{1} << 24;
  constexpr int64_t kMostValues = std::numeric_limits<int32_t>::max();
  require(
      pooling.bin_rows <= kMost && pooling.bin_columns <= kMost && pooling.bins() <= kMost &&
          pooling.output_channels() <= kMost &&
          pooling.bins() * pooling.output_channels() <= kMostValues,
      "output_size is too large for CUDA: at most ",
      kMost,
      " bins and channels, and ",
      kMostValues,
      " values of one RoI, got ",
      pooling.bin_rows,
      " x ",
      pooling.bin_columns,
      " bins of ",
      pooling.output_channels(),
      " channels");
  for (const Level& level : pooling.levels) {
    require(
        level.height <= kMost && level.width <= kMost,
        "input is too large for CUDA: at most ",
        kMost,
        " cells along each side, got ",
        level.height,
        " x ",
        level.width);
  }
}

// A bank's values with the channels of a cell side by side.
struct BankMemory {
  void* data;
  BankStrides strides;
};

// The inputs in their own type: in place where a cell's channels lie side by side, else copied so,
// which costs less than reading planes in place: a plane gives one channel per memory access.
template <typename value_t>
class ReadableBanks {
 public:
  // Channels that one instruction can read.
  static constexpr int kWidth = 16 / sizeof(value_t);

  template <typename Machine>
  ReadableBanks(const Machine& machine, const std::vector<Tensor>& inputs, const Pooling& pooling) {
    for (size_t i = 0; i < inputs.size(); ++i) {
      const Tensor& input = inputs[i];
      const BankSize& size = pooling.banks[i];
      if (size.channels <= 1 || input.stride(2) == 1) {
        memory.push_back({const_cast<value_t*>(data_of<value_t>(input)), strides_of(input)});
        continue;
      }
      const Tensor cells = torch::stable::new_empty(input, {size.numel()});
      auto* target = writable_data_of<value_t>(cells);
      copy_bank(
          machine, size, data_of<value_t>(input), strides_of(input), target, map_strides(size));
      memory.push_back({target, map_strides(size)});
      copies_.push_back(cells);
    }
  }

  // Whether every cell of every bank can be read kWidth channels at a time.
  bool wide(const Pooling& pooling) const {
    return pooling.channels % kWidth == 0 &&
        std::all_of(memory.begin(), memory.end(), [](const BankMemory& bank) {
             const BankStrides& s = bank.strides;
             return reinterpret_cast<uintptr_t>(bank.data) % 16 == 0 && s.image % kWidth == 0 &&
                 s.map % kWidth == 0 && s.row % kWidth == 0 && s.column % kWidth == 0;
           });
  }

  std::vector<BankMemory> memory;

 private:
  std::vector<Tensor> copies_;
};

// Problem and banks on the device, with the tensors that keep their memory alive.
template <typename scalar_t>
class DeviceTables {
 public:
  template <typename Machine>
  DeviceTables(
      const Machine& machine,
      const Request& request,
      const Pooling& pooling,
      const std::vector<BankMemory>& banks,
      const std::vector<BankMemory>& grad_banks) {
    require_countable(pooling);
    rois_ = torch::stable::contiguous(torch::stable::to(request.rois, ComputedIn<scalar_t>::dtype));
    describe_shapes(pooling);
    problem.roi_table = data_of<scalar_t>(rois_);
    require_levels(request.levels, pooling);
    if (request.levels.has_value()) {
      levels_ = as_int64(*request.levels, "levels");
      problem.roi_levels = data_of<int64_t>(levels_);
    }
    const std::vector<MapIndex> indices = map_indices(request, pooling);
    std::vector<int64_t> map_offsets;
    const std::vector<Bank> read = with_offsets(banks, pooling, map_offsets);
    const std::vector<Bank> written = with_offsets(grad_banks, pooling, map_offsets);
    const int64_t levels_at = append(pooling.levels);
    const int64_t indices_at = append(indices);
    const int64_t read_at = append(read);
    const int64_t written_at = append(written);
    const int64_t offsets_at = append(map_offsets);
    store(machine);
    const auto* words = data_of<int64_t>(stored_);
    problem.levels = reinterpret_cast<const Level*>(words + levels_at);
    problem.map_indices = reinterpret_cast<const MapIndex*>(words + indices_at);
    problem.map_offsets = words + offsets_at;
    this->banks = reinterpret_cast<const Bank*>(words + read_at);
    this->grad_banks = reinterpret_cast<const Bank*>(words + written_at);
  }

  Problem<scalar_t> problem{};
  const Bank* banks = nullptr;
  const Bank* grad_banks = nullptr;

 private:
  void describe_shapes(const Pooling& pooling) {
    problem.images = pooling.images;
    problem.rois = pooling.rois;
    problem.channels = static_cast<int32_t>(pooling.channels);
    problem.bin_rows = static_cast<int32_t>(pooling.bin_rows);
    problem.bin_columns = static_cast<int32_t>(pooling.bin_columns);
    problem.sampling_ratio = static_cast<int32_t>(pooling.sampling_ratio);
    problem.sources = static_cast<int32_t>(pooling.sources);
    problem.num_levels = static_cast<int32_t>(pooling.levels.size());
    problem.stacks = pooling.merge == Merge::kStack;
    problem.multiplies = multiplies(pooling.merge);
    problem.relu = pooling.merge == Merge::kMultiplyRelu;
  }

  std::vector<MapIndex> map_indices(const Request& request, const Pooling& pooling) {
    std::vector<MapIndex> indices;
    for (size_t source = 0; source < request.bank_indices.size(); ++source) {
      const Tensor index = as_int64(request.bank_indices[source], "bank_index");
      const std::array<int64_t, 3> strides = broadcast_strides(index, pooling);
      indices.push_back(
          {data_of<int64_t>(index),
           strides[0],
           strides[1],
           strides[2],
           pooling.bank(static_cast<int64_t>(source), 0).maps});
      indices_.push_back(index);
    }
    return indices;
  }

  static std::vector<Bank> with_offsets(
      const std::vector<BankMemory>& memory,
      const Pooling& pooling,
      std::vector<int64_t>& map_offsets) {
    std::vector<Bank> banks;
    for (size_t i = 0; i < memory.size(); ++i) {
      const BankStrides& strides = memory[i].strides;
      banks.push_back(
          {memory[i].data,
           strides.image,
           strides.row,
           strides.column,
           static_cast<int64_t>(map_offsets.size())});
      int64_t map_offset = 0;
      for (const Origin& origin : pooling.origins[i / pooling.levels.size()]) {
        map_offsets.push_back(
            map_offset + origin.row * strides.row + origin.column * strides.column);
        map_offset += strides.map;
      }
    }
    return banks;
  }

  // Returns the place of the rows of a table among the words.
  template <typename Row>
  int64_t append(const std::vector<Row>& rows) {
    static_assert(std::is_trivially_copyable_v<Row> && sizeof(Row) % sizeof(int64_t) == 0);
    const size_t place = words_.size();
    words_.resize(place + rows.size() * sizeof(Row) / sizeof(int64_t));
    if (!rows.empty()) {
      std::memcpy(words_.data() + place, rows.data(), rows.size() * sizeof(Row));
    }
    return static_cast<int64_t>(place);
  }

  template <typename Machine>
  void store(const Machine& machine) {
    const auto all = static_cast<int64_t>(words_.size());
    stored_ = torch::stable::new_empty(rois_, {all}, ScalarType::Long);
    for (int64_t first = 0; first < all; first += StoreWords::kWords) {
      StoreWords part{};
      part.count = std::min(StoreWords::kWords, all - first);
      part.target = writable_data_of<int64_t>(stored_) + first;
      std::memcpy(part.words, words_.data() + first, part.count * sizeof(int64_t));
      machine.launch("store_words", part, 1, 0);
    }
  }

  Tensor rois_;
  Tensor levels_;
  std::vector<Tensor> indices_;
  std::vector<int64_t> words_;
  Tensor stored_;
};

// Calls run(width) with the number of channels to read at a time, as a constant.
template <typename value_t, typename Run>
void for_width(const ReadableBanks<value_t>& banks, const Pooling& pooling, const Run& run) {
  if (banks.wide(pooling)) {
    run(std::integral_constant<int, ReadableBanks<value_t>::kWidth>{});
  } else {
    run(std::integral_constant<int, 1>{});
  }
}

template <typename scalar_t>
int64_t shared_for_features(const Tiling& tiling, int64_t slots) {
  return PooledTile<scalar_t>::bytes(
      static_cast<int>(slots), tiling.rows * tiling.columns, tiling.channels);
}

inline std::vector<BankMemory> memory_of(const GradientBanks& gradients, const Pooling& pooling) {
  std::vector<BankMemory> memory;
  for (size_t i = 0; i < gradients.cells().size(); ++i) {
    memory.push_back({gradients.cells()[i].mutable_data_ptr(), gradients.strides(i)});
  }
  return memory;
}

}  // namespace fsn_d2
