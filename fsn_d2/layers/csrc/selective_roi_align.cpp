// selective_roi_align on the CPU: the op's schema, its checks, forward and backward.
// fsn_d2/layers/selective_roi_align.py documents the op; reference.py says the same in PyTorch.
//
// Built against PyTorch's stable ABI and free of Python symbols: one library serves every torch
// from 2.11 on, and a C++ program can load it.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "roi_geometry.h"

namespace fsn_d2 {
namespace {

using torch::headeronly::IntHeaderOnlyArrayRef;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kMaxSamplingRatio = 1024;

template <typename... Parts>
void require(bool condition, const Parts&... parts) {
  if (!condition) {
    std::ostringstream message;
    message << "selective_roi_align: ";
    ((message << parts), ...);
    throw std::runtime_error(message.str());
  }
}

std::string shape_of(const Tensor& tensor) {
  std::ostringstream text;
  text << '[';
  for (int64_t dim = 0; dim < tensor.dim(); ++dim) {
    text << (dim ? ", " : "") << tensor.size(dim);
  }
  text << ']';
  return text.str();
}

Tensor permute(const Tensor& tensor, IntHeaderOnlyArrayRef dims) {
  std::array<StableIValue, 2> stack{
      torch::stable::detail::from(tensor), torch::stable::detail::from(dims)};
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::permute", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// A bank as the kernels walk it: [N, H, W, B, C], so that the C channels of one cell of one map lie
// side by side.
struct BankShape {
  int64_t images, height, width, maps, channels;

  int64_t cell(int64_t image, int64_t row, int64_t column, int64_t map) const {
    return (((image * height + row) * width + column) * maps + map) * channels;
  }
};

struct Pooling {
  BankShape bank;
  int64_t rois, bin_rows, bin_columns;
  double spatial_scale;
  int64_t sampling_ratio;

  int64_t bins() const {
    return bin_rows * bin_columns;
  }
};

bool is_integer(ScalarType type) {
  return type == ScalarType::Byte || type == ScalarType::Char || type == ScalarType::Short ||
      type == ScalarType::Int || type == ScalarType::Long;
}

bool is_supported_float(ScalarType type) {
  return type == ScalarType::Float || type == ScalarType::Double;
}

Pooling describe(
    IntHeaderOnlyArrayRef bank,
    const Tensor& rois,
    int64_t bin_rows,
    int64_t bin_columns,
    double spatial_scale,
    int64_t sampling_ratio) {
  require(
      rois.dim() == 2 && rois.size(1) == 5,
      "rois must have the shape [K, 5] (batch index, x1, y1, x2, y2), got ",
      shape_of(rois));
  require(
      bin_rows >= 1 && bin_columns >= 1,
      "output_size must be at least 1 x 1, got ",
      bin_rows,
      " x ",
      bin_columns);
  require(
      std::isfinite(spatial_scale) && spatial_scale > 0,
      "spatial_scale must be positive and finite (1 / stride), got ",
      spatial_scale);
  require(
      sampling_ratio >= 0 && sampling_ratio <= kMaxSamplingRatio,
      "sampling_ratio must lie in 0..",
      kMaxSamplingRatio,
      " (0 chooses it by the RoI's size), got ",
      sampling_ratio);
  return {
      {bank[0], bank[3], bank[4], bank[1], bank[2]},
      rois.size(0),
      bin_rows,
      bin_columns,
      spatial_scale,
      sampling_ratio};
}

void check_types(const Tensor& values, const char* name, const Tensor& rois, const Tensor& index) {
  require(is_supported_float(values.scalar_type()), name, " must be float32 or float64 on the CPU");
  require(
      rois.scalar_type() == values.scalar_type(),
      "rois must have the dtype of ",
      name,
      "; convert them with rois.to(",
      name,
      ".dtype)");
  require(is_integer(index.scalar_type()), "bank_index must be an integer tensor");
  require(
      values.is_cpu() && rois.is_cpu() && index.is_cpu(),
      name,
      ", rois and bank_index must be on the same device");
}

template <typename scalar_t>
const scalar_t* data_of(const Tensor& tensor) {
  return static_cast<const scalar_t*>(tensor.const_data_ptr());
}

template <typename scalar_t>
void check_rois(const scalar_t* rois, const Pooling& pooling) {
  for (int64_t k = 0; k < pooling.rois; ++k) {
    const scalar_t image = rois[k * 5];
    require(
        image >= 0 && image < static_cast<scalar_t>(pooling.bank.images),
        "rois[",
        k,
        ", 0], the batch index, must lie in [0, ",
        pooling.bank.images,
        "), got ",
        image);
    for (int64_t i = 1; i < 5; ++i) {
      require(
          std::isfinite(rois[k * 5 + i]),
          "rois[",
          k,
          ", ",
          i,
          "] must be finite, got ",
          rois[k * 5 + i]);
    }
  }
}

// bank_index, broadcast to [K, PH, PW] and checked.
class BankIndex {
 public:
  BankIndex(const Tensor& index, const Pooling& pooling)
      : index_(torch::stable::contiguous(torch::stable::to(index, ScalarType::Long))) {
    const std::array<int64_t, 3> target{pooling.rois, pooling.bin_rows, pooling.bin_columns};
    const int64_t missing = 3 - index_.dim();
    bool fits = missing >= 0;
    for (int64_t dim = 0; fits && dim < index_.dim(); ++dim) {
      const int64_t size = index_.size(dim);
      fits = size == 1 || size == target[dim + missing];
      strides_[dim + missing] = size == 1 ? 0 : index_.stride(dim);
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
        shape_of(index_));
    const auto* values = data_of<int64_t>(index_);
    for (int64_t i = 0; i < index_.numel(); ++i) {
      require(
          values[i] >= 0 && values[i] < pooling.bank.maps,
          "bank_index must lie in [0, ",
          pooling.bank.maps,
          "), the number of maps in the bank, got ",
          values[i]);
    }
  }

  int64_t at(int64_t roi, int64_t bin_row, int64_t bin_column) const {
    return data_of<int64_t>(
        index_)[roi * strides_[0] + bin_row * strides_[1] + bin_column * strides_[2]];
  }

 private:
  Tensor index_;
  std::array<int64_t, 3> strides_{0, 0, 0};
};

// One RoI placed on the map: its image and the weights of its bins along both axes.
template <typename scalar_t>
class RoiSampler {
 public:
  explicit RoiSampler(const Pooling& pooling)
      : pooling_(pooling),
        rows(pooling.bin_rows, pooling.bank.height),
        columns(pooling.bin_columns, pooling.bank.width) {}

  void place(const scalar_t* roi) {
    const auto scale = static_cast<scalar_t>(pooling_.spatial_scale);
    // Half a pixel back: cell (0, 0) has its centre at (0.5, 0.5) in continuous coordinates.
    const scalar_t x1 = roi[1] * scale - scalar_t(0.5);
    const scalar_t y1 = roi[2] * scale - scalar_t(0.5);
    const scalar_t x2 = roi[3] * scale - scalar_t(0.5);
    const scalar_t y2 = roi[4] * scale - scalar_t(0.5);
    image = static_cast<int64_t>(roi[0]);
    rows.compute(y1, y2 - y1, pooling_.sampling_ratio);
    columns.compute(x1, x2 - x1, pooling_.sampling_ratio);
    const auto samples = static_cast<double>(rows.grid()) * static_cast<double>(columns.grid());
    share = static_cast<scalar_t>(1.0 / std::max(samples, 1.0));
  }

  // Calls visit(cell offset, weight) for every cell that a bin reads in one map of the bank.
  template <typename Visit>
  void for_each_cell(int64_t bin_row, int64_t bin_column, int64_t map, const Visit& visit) const {
    for_each_cell(bin_row, bin_column, map, 0, pooling_.bank.height, visit);
  }

  // The same, limited to rows [first_row, last_row) of the map.
  template <typename Visit>
  void for_each_cell(
      int64_t bin_row,
      int64_t bin_column,
      int64_t map,
      int64_t first_row,
      int64_t last_row,
      const Visit& visit) const {
    for (auto row = rows.begin(bin_row); row != rows.end(bin_row); ++row) {
      if (row->cell < first_row || row->cell >= last_row) {
        continue;
      }
      const scalar_t row_weight = row->weight * share;
      for (auto column = columns.begin(bin_column); column != columns.end(bin_column); ++column) {
        visit(pooling_.bank.cell(image, row->cell, column->cell, map), row_weight * column->weight);
      }
    }
  }

 private:
  const Pooling& pooling_;

 public:
  AxisTaps<scalar_t> rows;
  AxisTaps<scalar_t> columns;
  int64_t image = 0;
  scalar_t share = 0;  // 1 / number of samples in a bin
};

// output: [K, C, PH, PW].
template <typename scalar_t>
void pool(
    const scalar_t* bank,
    const scalar_t* rois,
    const BankIndex& index,
    const Pooling& pooling,
    scalar_t* output) {
  const int64_t channels = pooling.bank.channels;
  torch::stable::parallel_for(0, pooling.rois, 1, [&](int64_t begin, int64_t end) {
    RoiSampler<scalar_t> sampler(pooling);
    std::vector<scalar_t> bin(channels);
    for (int64_t k = begin; k < end; ++k) {
      sampler.place(rois + k * 5);
      scalar_t* pooled = output + k * channels * pooling.bins();
      for (int64_t i = 0; i < pooling.bin_rows; ++i) {
        for (int64_t j = 0; j < pooling.bin_columns; ++j, ++pooled) {
          std::fill(bin.begin(), bin.end(), scalar_t(0));
          sampler.for_each_cell(i, j, index.at(k, i, j), [&](int64_t offset, scalar_t weight) {
            const scalar_t* cell = bank + offset;
            for (int64_t c = 0; c < channels; ++c) {
              bin[c] += weight * cell[c];
            }
          });
          for (int64_t c = 0; c < channels; ++c) {
            pooled[c * pooling.bins()] = bin[c];
          }
        }
      }
    }
  });
}

// grad_output: [K, PH, PW, C]; grad_bank: [N, H, W, B, C], zero on entry.
//
// Threads share out rows of the map, not RoIs: no two write the same cell, and every cell adds its
// terms in the order of the RoIs, so the result does not depend on the number of threads.
template <typename scalar_t>
void pool_backward(
    const scalar_t* grad_output,
    const scalar_t* rois,
    const BankIndex& index,
    const Pooling& pooling,
    scalar_t* grad_bank) {
  const BankShape& bank = pooling.bank;
  torch::stable::parallel_for(0, bank.images * bank.height, 1, [&](int64_t begin, int64_t end) {
    RoiSampler<scalar_t> sampler(pooling);
    for (int64_t k = 0; k < pooling.rois; ++k) {
      const int64_t top = static_cast<int64_t>(rois[k * 5]) * bank.height;
      const int64_t first_row = std::max<int64_t>(begin - top, 0);
      const int64_t last_row = std::min(end - top, bank.height);
      if (first_row >= last_row) {
        continue;
      }
      sampler.place(rois + k * 5);
      const scalar_t* grad = grad_output + k * pooling.bins() * bank.channels;
      for (int64_t i = 0; i < pooling.bin_rows; ++i) {
        for (int64_t j = 0; j < pooling.bin_columns; ++j, grad += bank.channels) {
          sampler.for_each_cell(
              i, j, index.at(k, i, j), first_row, last_row, [&](int64_t offset, scalar_t weight) {
                scalar_t* cell = grad_bank + offset;
                for (int64_t c = 0; c < bank.channels; ++c) {
                  cell[c] += weight * grad[c];
                }
              });
        }
      }
    }
  });
}

template <typename Run>
void for_scalar_type(ScalarType type, const Run& run) {
  if (type == ScalarType::Double) {
    run(double{});
  } else {
    run(float{});
  }
}

void require_pair(const std::vector<int64_t>& output_size) {
  require(
      output_size.size() == 2,
      "output_size must hold two numbers (rows, columns), got ",
      output_size.size());
}

Tensor selective_roi_align(
    const Tensor& input,
    const Tensor& rois,
    const Tensor& bank_index,
    std::vector<int64_t> output_size,
    double spatial_scale,
    int64_t sampling_ratio) {
  require(
      input.dim() == 5,
      "input must have the shape [N, B, C, H, W] (unflatten a convolution's output with "
      "unflatten(1, (B, C))), got ",
      shape_of(input));
  require_pair(output_size);
  const Pooling pooling =
      describe(input.sizes(), rois, output_size[0], output_size[1], spatial_scale, sampling_ratio);
  check_types(input, "input", rois, bank_index);
  const BankIndex index(bank_index, pooling);
  const Tensor bank = torch::stable::contiguous(permute(input, {0, 3, 4, 1, 2}));
  const Tensor boxes = torch::stable::contiguous(rois);
  Tensor output = torch::stable::new_empty(
      input, {pooling.rois, pooling.bank.channels, pooling.bin_rows, pooling.bin_columns});
  for_scalar_type(input.scalar_type(), [&](auto zero) {
    using scalar_t = decltype(zero);
    check_rois(data_of<scalar_t>(boxes), pooling);
    pool(
        data_of<scalar_t>(bank),
        data_of<scalar_t>(boxes),
        index,
        pooling,
        static_cast<scalar_t*>(output.mutable_data_ptr()));
  });
  return output;
}

Tensor selective_roi_align_backward(
    const Tensor& grad_output,
    const Tensor& rois,
    const Tensor& bank_index,
    std::vector<int64_t> input_size,
    double spatial_scale,
    int64_t sampling_ratio) {
  require(
      grad_output.dim() == 4,
      "grad_output must have the shape [K, C, PH, PW], got ",
      shape_of(grad_output));
  require(
      input_size.size() == 5 && input_size[2] == grad_output.size(1),
      "input_size must be [N, B, C, H, W] with the C of grad_output");
  for (const int64_t size : input_size) {
    require(size >= 0, "input_size must not be negative, got ", size);
  }
  const Pooling pooling = describe(
      input_size, rois, grad_output.size(2), grad_output.size(3), spatial_scale, sampling_ratio);
  require(
      grad_output.size(0) == pooling.rois,
      "grad_output and rois must hold the same number of RoIs, got ",
      grad_output.size(0),
      " and ",
      pooling.rois);
  check_types(grad_output, "grad_output", rois, bank_index);
  const BankIndex index(bank_index, pooling);
  const Tensor grad = torch::stable::contiguous(permute(grad_output, {0, 2, 3, 1}));
  const Tensor boxes = torch::stable::contiguous(rois);
  const BankShape& bank = pooling.bank;
  Tensor grad_bank = torch::stable::new_zeros(
      grad_output, {bank.images, bank.height, bank.width, bank.maps, bank.channels});
  for_scalar_type(grad_output.scalar_type(), [&](auto zero) {
    using scalar_t = decltype(zero);
    check_rois(data_of<scalar_t>(boxes), pooling);
    pool_backward(
        data_of<scalar_t>(grad),
        data_of<scalar_t>(boxes),
        index,
        pooling,
        static_cast<scalar_t*>(grad_bank.mutable_data_ptr()));
  });
  return permute(grad_bank, {0, 3, 4, 1, 2});
}

}  // namespace
}  // namespace fsn_d2

STABLE_TORCH_LIBRARY(fsn_d2, library) {
  library.def(
      "selective_roi_align(Tensor input, Tensor rois, Tensor bank_index, SymInt[] output_size, "
      "float spatial_scale, int sampling_ratio) -> Tensor");
  library.def(
      "selective_roi_align_backward(Tensor grad_output, Tensor rois, Tensor bank_index, "
      "SymInt[] input_size, float spatial_scale, int sampling_ratio) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(fsn_d2, CPU, library) {
  library.impl("selective_roi_align", TORCH_BOX(&fsn_d2::selective_roi_align));
  library.impl("selective_roi_align_backward", TORCH_BOX(&fsn_d2::selective_roi_align_backward));
}
