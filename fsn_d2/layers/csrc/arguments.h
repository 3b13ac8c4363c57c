// The arguments of selective_roi_align, checked and in the form that every device's kernels use.
// fsn_d2/layers/selective_roi_align.py documents them; reference.py says the same in PyTorch. Those
// of selective_roi_pool are a part of them (pool_arguments.h).

#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

namespace fsn_d2 {

using torch::headeronly::ScalarType;
using torch::headeronly::toString;
using torch::stable::Tensor;

constexpr int64_t kMaxSamplingRatio = 1024;

// The op that this thread runs; errors begin with it.
inline thread_local const char* running_op = "fsn_d2";

template <typename... Parts>
void require(bool condition, const Parts&... parts) {
  if (!condition) {
    std::ostringstream message;
    message << running_op << ": ";
    ((message << parts), ...);
    throw std::runtime_error(message.str());
  }
}

inline std::string shape_of(const Tensor& tensor) {
  std::ostringstream text;
  text << '[';
  for (int64_t dim = 0; dim < tensor.dim(); ++dim) {
    text << (dim ? ", " : "") << tensor.size(dim);
  }
  text << ']';
  return text.str();
}

// How the sources' pooled features become the output. The first source is the RoI feature, the
// others are attentions.
enum class Merge {
  kStack,         // side by side: [K, S * C, PH, PW]
  kSum,           // their sum: [K, C, PH, PW]
  kMultiply,      // first * (sum of the others)
  kMultiplyRelu,  // first * relu(sum of the others)
};

inline Merge merge_named(const std::string& name) {
  const std::array<const char*, 4> names{"stack", "sum", "multiply", "multiply_relu"};
  for (size_t i = 0; i < names.size(); ++i) {
    if (name == names[i]) {
      return static_cast<Merge>(i);
    }
  }
  require(
      false, "merge must be one of 'stack', 'sum', 'multiply', 'multiply_relu', got '", name, "'");
  return Merge::kSum;
}

inline bool multiplies(Merge merge) {
  return merge == Merge::kMultiply || merge == Merge::kMultiplyRelu;
}

// The sampled extent of one pyramid level and its scale.
struct Level {
  int64_t height, width;
  double scale;
};

// One source at one level: Tensor[N, maps, C, height, width].
struct BankSize {
  int64_t images, maps, channels, height, width;

  int64_t numel() const {
    return images * maps * channels * height * width;
  }
};

struct Origin {
  int64_t row, column;
};

// What is pooled, from what, how: sizes only, no data.
struct Pooling {
  int64_t images, channels, rois, bin_rows, bin_columns, sampling_ratio;
  Merge merge;
  int64_t sources;
  std::vector<Level> levels;
  std::vector<BankSize> banks;               // source by source, level by level
  std::vector<std::vector<Origin>> origins;  // of every map of every source

  const BankSize& bank(int64_t source, int64_t level) const {
    return banks[source * levels.size() + level];
  }

  int64_t bins() const {
    return bin_rows * bin_columns;
  }

  // Pooled features that are kept apart until the end: one per source, their sum, or the RoI
  // feature and the sum of the attentions.
  int64_t slots() const {
    return merge == Merge::kStack ? sources : multiplies(merge) ? 2 : 1;
  }

  int64_t slot_of(int64_t source) const {
    return merge == Merge::kStack ? source : multiplies(merge) && source > 0 ? 1 : 0;
  }

  int64_t output_channels() const {
    return merge == Merge::kStack ? sources * channels : channels;
  }

  // Whether the channels of a bin of the output lie side by side in memory, as the convolutions
  // behind it read them; else the bins of a channel.
  bool channels_last() const {
    return merge == Merge::kStack;
  }
};

// See fsn_d2/layers/_traced_lists.py, which keeps this from happening where a model is traced.
inline void require_defined(const std::vector<Tensor>& tensors, const char* name) {
  for (const Tensor& tensor : tensors) {
    require(
        tensor.defined(),
        name,
        " holds an undefined tensor: in this TorchScript graph another op, or an earlier run, was"
        " handed the same list, and PyTorch moved the tensors out of it; trace the whole model at"
        " once, not scripting it or joining traced parts, with RoIs that depend on its input");
  }
}

// The arguments that forward and backward share, apart from the banks.
struct Request {
  const Tensor& rois;
  const std::optional<Tensor>& levels;
  const std::vector<Tensor>& bank_indices;
  const std::vector<int64_t>& origins;
  const std::vector<double>& spatial_scales;
  int64_t sampling_ratio;
  const std::string& merge;
};

inline bool is_integer(ScalarType type) {
  return type == ScalarType::Byte || type == ScalarType::Char || type == ScalarType::Short ||
      type == ScalarType::Int || type == ScalarType::Long;
}

inline bool is_float(ScalarType type) {
  return type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::Half ||
      type == ScalarType::BFloat16;
}

inline std::vector<std::vector<Origin>> read_origins(
    const std::vector<int64_t>& flat, const Pooling& pooling) {
  std::vector<std::vector<Origin>> origins(pooling.sources);
  size_t next = 0;
  for (int64_t s = 0; s < pooling.sources; ++s) {
    for (int64_t map = 0; map < pooling.bank(s, 0).maps; ++map, next += 2) {
      const bool given = next + 2 <= flat.size();
      require(
          given || flat.empty(),
          "origins must be empty or hold a (row, column) pair for every map of every source, got ",
          flat.size(),
          " numbers");
      origins[s].push_back(given ? Origin{flat[next], flat[next + 1]} : Origin{0, 0});
    }
  }
  require(
      flat.empty() || next == flat.size(),
      "origins must be empty or hold ",
      next,
      " numbers, a (row, column) pair for every map of every source, got ",
      flat.size());
  return origins;
}

inline void check_banks(const Pooling& pooling) {
  for (int64_t s = 0; s < pooling.sources; ++s) {
    for (size_t l = 0; l < pooling.levels.size(); ++l) {
      const BankSize& bank = pooling.bank(s, l);
      const Level& level = pooling.levels[l];
      require(
          bank.images == pooling.images && bank.channels == pooling.channels &&
              bank.maps == pooling.bank(s, 0).maps,
          "every input must have the same N and C, and one source's levels the same B; source ",
          s,
          " at level ",
          l,
          " has N = ",
          bank.images,
          ", B = ",
          bank.maps,
          ", C = ",
          bank.channels);
      for (const Origin& origin : pooling.origins[s]) {
        require(
            origin.row >= 0 && origin.column >= 0 && origin.row <= bank.height - level.height &&
                origin.column <= bank.width - level.width,
            "input of source ",
            s,
            " at level ",
            l,
            " is ",
            bank.height,
            " x ",
            bank.width,
            " cells, too small for ",
            level.height,
            " x ",
            level.width,
            " cells from the origin (",
            origin.row,
            ", ",
            origin.column,
            ")");
      }
    }
  }
}

inline Pooling describe(
    std::vector<BankSize> banks, int64_t bin_rows, int64_t bin_columns, const Request& request) {
  const size_t num_levels = request.spatial_scales.size();
  const size_t sources = request.bank_indices.size();
  require(num_levels >= 1, "spatial_scales must hold one number per level, got none");
  require(sources >= 1, "bank_indices must hold one tensor per source, got none");
  require_defined(request.bank_indices, "bank_indices");
  require(
      banks.size() == sources * num_levels,
      "there must be one input per source and level, ",
      sources,
      " x ",
      num_levels,
      ", got ",
      banks.size());
  require(
      request.rois.dim() == 2 && request.rois.size(1) == 5,
      "rois must have the shape [K, 5] (batch index, x1, y1, x2, y2), got ",
      shape_of(request.rois));
  require(
      bin_rows >= 1 && bin_columns >= 1,
      "output_size must be at least 1 x 1, got ",
      bin_rows,
      " x ",
      bin_columns);
  require(
      request.sampling_ratio >= 0 && request.sampling_ratio <= kMaxSamplingRatio,
      "sampling_ratio must lie in 0..",
      kMaxSamplingRatio,
      " (0 chooses it by the RoI's size), got ",
      request.sampling_ratio);
  Pooling pooling{};
  pooling.images = banks[0].images;
  pooling.channels = banks[0].channels;
  pooling.rois = request.rois.size(0);
  pooling.bin_rows = bin_rows;
  pooling.bin_columns = bin_columns;
  pooling.sampling_ratio = request.sampling_ratio;
  pooling.merge = merge_named(request.merge);
  pooling.sources = static_cast<int64_t>(sources);
  require(
      !multiplies(pooling.merge) || sources >= 2,
      "merge '",
      request.merge,
      "' needs at least two sources, got one");
  for (size_t l = 0; l < num_levels; ++l) {
    const double scale = request.spatial_scales[l];
    require(
        std::isfinite(scale) && scale > 0,
        "spatial_scale must be positive and finite (1 / stride), got ",
        scale);
    // The first source is read from its corner and sets what is sampled.
    pooling.levels.push_back({banks[l].height, banks[l].width, scale});
  }
  pooling.banks = std::move(banks);
  pooling.origins = read_origins(request.origins, pooling);
  check_banks(pooling);
  return pooling;
}

inline void require_type_of_rois(const Tensor& rois) {
  require(
      is_float(rois.scalar_type()),
      "rois must be of a floating dtype (float32 keeps coordinates exact), got ",
      toString(rois.scalar_type()));
}

// The strides that broadcast `index` to [K, PH, PW].
inline std::array<int64_t, 3> broadcast_strides(const Tensor& index, const Pooling& pooling) {
  const std::array<int64_t, 3> target{pooling.rois, pooling.bin_rows, pooling.bin_columns};
  std::array<int64_t, 3> strides{0, 0, 0};
  const int64_t missing = 3 - index.dim();
  bool fits = missing >= 0;
  for (int64_t dim = 0; fits && dim < index.dim(); ++dim) {
    const int64_t size = index.size(dim);
    fits = size == 1 || size == target[dim + missing];
    strides[dim + missing] = size == 1 ? 0 : index.stride(dim);
  }
  require(
      fits,
      "bank_index must broadcast to [K, PH, PW] = [",
      target[0],
      ", ",
      target[1],
      ", ",
      target[2],
      "], got ",
      shape_of(index));
  return strides;
}

inline Tensor as_int64(const Tensor& tensor, const char* name) {
  require(
      is_integer(tensor.scalar_type()),
      name,
      " must be an integer tensor, got ",
      toString(tensor.scalar_type()));
  return torch::stable::contiguous(torch::stable::to(tensor, ScalarType::Long));
}

inline void require_levels(const std::optional<Tensor>& levels, const Pooling& pooling) {
  if (!levels.has_value()) {
    require(
        pooling.levels.size() == 1,
        "levels must name the level of each RoI when there is more than one level");
    return;
  }
  require(
      levels->dim() == 1 && levels->size(0) == pooling.rois,
      "levels must have the shape [K] = [",
      pooling.rois,
      "], got ",
      shape_of(*levels));
}

inline void require_pair(const std::vector<int64_t>& output_size) {
  require(
      output_size.size() == 2,
      "output_size must hold two numbers (rows, columns), got ",
      output_size.size());
}

// The sizes of `inputs`, which must be alike in dtype and device.
inline std::vector<BankSize> bank_sizes(const std::vector<Tensor>& inputs) {
  require(!inputs.empty(), "there must be at least one input");
  require_defined(inputs, "inputs");
  std::vector<BankSize> sizes;
  for (const Tensor& input : inputs) {
    require(
        input.dim() == 5,
        "input must have the shape [N, B, C, H, W] (unflatten a convolution's output with "
        "unflatten(1, (B, C))), got ",
        shape_of(input));
    require(
        is_float(input.scalar_type()),
        "input must be float32, float64, float16 or bfloat16, got ",
        toString(input.scalar_type()));
    require(
        input.scalar_type() == inputs[0].scalar_type(),
        "input must have one dtype in every source and level, got ",
        toString(inputs[0].scalar_type()),
        " and ",
        toString(input.scalar_type()));
    sizes.push_back({input.size(0), input.size(1), input.size(2), input.size(3), input.size(4)});
  }
  return sizes;
}

// The same from flat sizes, five per bank.
inline std::vector<BankSize> bank_sizes(const std::vector<int64_t>& flat) {
  require(
      !flat.empty() && flat.size() % 5 == 0,
      "input_sizes must hold N, B, C, H, W of every input, got ",
      flat.size(),
      " numbers");
  std::vector<BankSize> sizes;
  for (size_t i = 0; i < flat.size(); i += 5) {
    for (size_t j = i; j < i + 5; ++j) {
      require(flat[j] >= 0, "input_sizes must not be negative, got ", flat[j]);
    }
    sizes.push_back({flat[i], flat[i + 1], flat[i + 2], flat[i + 3], flat[i + 4]});
  }
  return sizes;
}

inline void require_sizes(
    const std::vector<Tensor>& inputs, const std::vector<BankSize>& expected) {
  require(
      inputs.size() == expected.size(),
      "this gradient needs every input, got ",
      inputs.size(),
      " of ",
      expected.size());
  const auto as_tuple = [](const BankSize& s) {
    return std::make_tuple(s.images, s.maps, s.channels, s.height, s.width);
  };
  const std::vector<BankSize> sizes = bank_sizes(inputs);
  for (size_t i = 0; i < sizes.size(); ++i) {
    require(as_tuple(sizes[i]) == as_tuple(expected[i]), "input ", i, " must have its input_sizes");
  }
}

// For a gradient that reads the inputs.
inline void require_inputs(
    const std::vector<Tensor>& inputs, const Pooling& pooling, const Tensor& grad_output) {
  require_sizes(inputs, pooling.banks);
  require(
      inputs[0].scalar_type() == grad_output.scalar_type(),
      "input must have the dtype of grad_output, ",
      toString(grad_output.scalar_type()),
      ", got ",
      toString(inputs[0].scalar_type()));
}

// The same from what the backward is given. Only a product's gradient reads the inputs.
inline Pooling describe_backward(
    const Tensor& grad_output,
    const std::vector<Tensor>& inputs,
    const std::vector<int64_t>& input_sizes,
    const Request& request) {
  require(
      grad_output.dim() == 4,
      "grad_output must have the shape [K, C, PH, PW], got ",
      shape_of(grad_output));
  require(
      is_float(grad_output.scalar_type()),
      "grad_output must be float32, float64, float16 or bfloat16, got ",
      toString(grad_output.scalar_type()));
  Pooling pooling =
      describe(bank_sizes(input_sizes), grad_output.size(2), grad_output.size(3), request);
  require(
      grad_output.size(0) == pooling.rois && grad_output.size(1) == pooling.output_channels(),
      "grad_output must have the shape [K, C, PH, PW] with K = ",
      pooling.rois,
      " RoIs and C = ",
      pooling.output_channels(),
      ", got ",
      shape_of(grad_output));
  if (multiplies(pooling.merge)) {
    require_inputs(inputs, pooling, grad_output);
  }
  return pooling;
}

inline std::string device_of(const Tensor& tensor) {
  return tensor.is_cuda() ? "cuda:" + std::to_string(tensor.get_device_index())
      : tensor.is_cpu()   ? "cpu"
                          : "another kind of device";
}

inline void require_same_device(const Tensor& tensor, const Tensor& first, const char* name) {
  require(
      tensor.is_cpu() == first.is_cpu() && tensor.is_cuda() == first.is_cuda() &&
          tensor.get_device_index() == first.get_device_index(),
      "input, rois, levels and bank_index must be on the same device; ",
      name,
      " is on ",
      device_of(tensor),
      ", the first on ",
      device_of(first));
}

inline void require_same_device(
    const Request& request, const std::vector<Tensor>& inputs, const Tensor& first) {
  for (const Tensor& input : inputs) {
    require_same_device(input, first, "input");
  }
  require_same_device(request.rois, first, "rois");
  for (const Tensor& index : request.bank_indices) {
    require_same_device(index, first, "bank_index");
  }
  if (request.levels.has_value()) {
    require_same_device(*request.levels, first, "levels");
  }
}

}  // namespace fsn_d2
