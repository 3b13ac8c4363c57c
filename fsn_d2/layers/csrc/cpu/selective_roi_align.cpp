// selective_roi_align on the CPU: the op's schema, forward and backward.
//
// Built against PyTorch's stable ABI and free of Python symbols: one library serves every torch
// from 2.11 on, and a C++ program can load it.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "../arguments.h"
#include "../banks.h"
#include "capability.h"
#include "gradients.h"
#include "layout.h"
#include "pooling.h"

namespace fsn_d2 {
namespace {

constexpr int64_t kChunk = 64;  // RoIs whose gradients are prepared before they are added

// The request's tensors in the form of the kernels, checked, with what keeps them alive.
template <typename scalar_t>
class CheckedRois {
 public:
  CheckedRois(const Request& request, const Pooling& pooling)
      : rois_(torch::stable::contiguous(torch::stable::to(request.rois, kType))),
        table_{pooling, data_of<scalar_t>(rois_), nullptr, {}, {}} {
    check_rois(pooling);
    require_levels(request.levels, pooling);
    if (request.levels.has_value()) {
      levels_ = as_int64(*request.levels, "levels");
      table_.levels = data_of<int64_t>(levels_);
      check_range(levels_, static_cast<int64_t>(pooling.levels.size()), "levels", "levels");
    }
    for (size_t s = 0; s < request.bank_indices.size(); ++s) {
      indices_.push_back(as_int64(request.bank_indices[s], "bank_index"));
      const Tensor& index = indices_.back();
      table_.maps.push_back({data_of<int64_t>(index), broadcast_strides(index, pooling)});
      check_range(index, pooling.bank(s, 0).maps, "bank_index", "maps in the bank");
    }
    table_.order = spatial_order(table_);
  }

  const RoiTable<scalar_t>& table() const {
    return table_;
  }

 private:
  static constexpr ScalarType kType =
      std::is_same_v<scalar_t, double> ? ScalarType::Double : ScalarType::Float;

  void check_rois(const Pooling& pooling) const {
    for (int64_t k = 0; k < pooling.rois; ++k) {
      const scalar_t* roi = table_.rois + k * 5;
      require(
          roi[0] >= 0 && roi[0] < static_cast<scalar_t>(pooling.images),
          "rois[",
          k,
          ", 0], the batch index, must lie in [0, ",
          pooling.images,
          "), got ",
          roi[0]);
      for (int64_t i = 1; i < 5; ++i) {
        require(std::isfinite(roi[i]), "rois[", k, ", ", i, "] must be finite, got ", roi[i]);
      }
    }
  }

  static void check_range(const Tensor& values, int64_t limit, const char* name, const char* of) {
    const auto* value = data_of<int64_t>(values);
    for (int64_t i = 0; i < values.numel(); ++i) {
      require(
          value[i] >= 0 && value[i] < limit,
          name,
          " must lie in [0, ",
          limit,
          "), the number of ",
          of,
          ", got ",
          value[i]);
    }
  }

  Tensor rois_;
  Tensor levels_;
  std::vector<Tensor> indices_;
  RoiTable<scalar_t> table_;
};

template <typename value_t>
BankView<value_t> view(
    value_t* data, const BankStrides& strides, const std::vector<Origin>& origins) {
  BankView<value_t> bank{data, strides.image, strides.row, strides.column, {}};
  for (size_t map = 0; map < origins.size(); ++map) {
    bank.map_offset.push_back(
        static_cast<int64_t>(map) * strides.map + origins[map].row * strides.row +
        origins[map].column * strides.column);
  }
  return bank;
}

// The banks' values as the kernels read them: in place where a cell's channels lie side by side in
// the type that is computed with, else copied so. Converting the layout costs less than reading
// planes in place: a plane gives one channel per cache line.
template <typename scalar_t>
class ReadableBanks {
 public:
  ReadableBanks(const std::vector<Tensor>& inputs, const Pooling& pooling) {
    const size_t levels = pooling.levels.size();
    for (size_t i = 0; i < inputs.size(); ++i) {
      const Tensor& input = inputs[i];
      const BankSize& size = pooling.banks[i];
      const std::vector<Origin>& origins = pooling.origins[i / levels];
      const bool readable =
          input.scalar_type() == type() && (size.channels <= 1 || input.stride(2) == 1);
      if (readable) {
        views.push_back(view(data_of<scalar_t>(input), strides_of(input), origins));
        continue;
      }
      Tensor cells = torch::stable::new_empty(input, {size.numel()}, type());
      auto* target = static_cast<scalar_t*>(cells.mutable_data_ptr());
      for_float_type(input.scalar_type(), [&](auto zero) {
        copy_bank(
            size, data_of<decltype(zero)>(input), strides_of(input), target, cell_strides(size));
      });
      views.push_back(view<const scalar_t>(target, cell_strides(size), origins));
      copies_.push_back(std::move(cells));
    }
  }

  static constexpr ScalarType type() {
    return std::is_same_v<scalar_t, double> ? ScalarType::Double : ScalarType::Float;
  }

  std::vector<BankView<const scalar_t>> views;

 private:
  std::vector<Tensor> copies_;
};

// float64 is computed in float64, everything else in float32.
template <typename Run>
void for_compute_type(ScalarType type, const Run& run) {
  if (type == ScalarType::Double) {
    run(double{});
  } else {
    run(float{});
  }
}

Tensor selective_roi_align(
    std::vector<Tensor> inputs,
    const Tensor& rois,
    std::optional<Tensor> levels,
    std::vector<Tensor> bank_indices,
    std::vector<int64_t> origins,
    std::vector<int64_t> output_size,
    std::vector<double> spatial_scales,
    int64_t sampling_ratio,
    std::string merge) {
  require_pair(output_size);
  const Request request{rois, levels, bank_indices, origins, spatial_scales, sampling_ratio, merge};
  const Pooling pooling = describe(bank_sizes(inputs), output_size[0], output_size[1], request);
  require_type_of_rois(rois);
  require_same_device(request, inputs, inputs[0]);
  Tensor output = torch::stable::new_empty(
      inputs[0], {pooling.rois, pooling.output_channels(), pooling.bin_rows, pooling.bin_columns});
  for_compute_type(output.scalar_type(), [&](auto compute) {
    using scalar_t = decltype(compute);
    const CheckedRois<scalar_t> checked(request, pooling);
    const ReadableBanks<scalar_t> banks(inputs, pooling);
    RoiWriter<scalar_t> writer{nullptr, output.mutable_data_ptr(), 0};
    for_float_type(output.scalar_type(), [&](auto zero) {
      using output_t = decltype(zero);
      writer.write = write_roi<scalar_t, output_t>;
      writer.bytes = pooling.output_channels() * pooling.bins() * sizeof(output_t);
    });
    torch::stable::parallel_for(0, pooling.rois, 1, [&](int64_t begin, int64_t end) {
      run_on_this_machine<PoolRois>(checked.table(), banks.views, writer, begin, end);
    });
  });
  return output;
}

// The rows of all levels and images, one after the other, cut into `parts` of about equal work for
// the RoIs of a chunk.
template <typename scalar_t>
std::vector<int64_t> equal_parts(
    const std::vector<RoiGradient<scalar_t>>& chunk,
    int64_t chunk_size,
    const Pooling& pooling,
    const std::vector<int64_t>& first_row_of_level,
    int64_t parts) {
  std::vector<int64_t> work(first_row_of_level.back() + 1, 0);
  for (int64_t n = 0; n < chunk_size; ++n) {
    const PlacedRoi<scalar_t>& roi = chunk[n].roi;
    const int64_t top =
        first_row_of_level[roi.level] + roi.image * pooling.levels[roi.level].height;
    for (const auto& row : roi.rows.all()) {
      work[top + row.cell] += static_cast<int64_t>(roi.columns.all().size());
    }
  }
  int64_t total = 0;
  for (const int64_t amount : work) {
    total += amount;
  }
  std::vector<int64_t> cuts{0};
  int64_t done = 0;
  for (size_t row = 0; row < work.size() && static_cast<int64_t>(cuts.size()) < parts; ++row) {
    done += work[row];
    if (done * parts >= total * static_cast<int64_t>(cuts.size())) {
      cuts.push_back(static_cast<int64_t>(row) + 1);
    }
  }
  cuts.resize(parts + 1, first_row_of_level.back());
  return cuts;
}

// Threads share out rows of the maps, not RoIs: no two write the same cell, and every cell adds its
// terms in the order of the RoIs, so the result does not depend on the number of threads.
template <typename scalar_t>
void pool_backward(
    const RoiTable<scalar_t>& table,
    const std::vector<BankView<const scalar_t>>& banks,
    ReadRoi<scalar_t> read,
    const void* grad_output,
    const std::vector<BankView<scalar_t>>& grad_banks) {
  const Pooling& pooling = table.pooling;
  std::vector<int64_t> first_row_of_level{0};
  for (const Level& level : pooling.levels) {
    first_row_of_level.push_back(first_row_of_level.back() + pooling.images * level.height);
  }
  std::vector<RoiGradient<scalar_t>> chunk(std::min(kChunk, pooling.rois));
  const auto threads = static_cast<int64_t>(torch::stable::get_num_threads());
  for (int64_t first = 0; first < pooling.rois; first += kChunk) {
    const int64_t last = std::min(first + kChunk, pooling.rois);
    torch::stable::parallel_for(first, last, 1, [&](int64_t begin, int64_t end) {
      run_on_this_machine<PrepareGradients>(
          table, banks, read, grad_output, &chunk, first, begin, end);
    });
    const std::vector<int64_t> cuts =
        equal_parts(chunk, last - first, pooling, first_row_of_level, threads);
    torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; ++part) {
        run_on_this_machine<ScatterGradients>(
            table, grad_banks, chunk, last - first, first_row_of_level, cuts[part], cuts[part + 1]);
      }
    });
  }
}

template <typename scalar_t>
std::vector<BankView<scalar_t>> views_of(const GradientBanks& gradients, const Pooling& pooling) {
  std::vector<BankView<scalar_t>> views;
  for (size_t i = 0; i < gradients.cells().size(); ++i) {
    views.push_back(view(
        writable_data_of<scalar_t>(gradients.cells()[i]),
        cell_strides(pooling.banks[i]),
        pooling.origins[i / pooling.levels.size()]));
  }
  return views;
}

std::vector<Tensor> selective_roi_align_backward(
    const Tensor& grad_output,
    std::vector<Tensor> inputs,
    std::vector<int64_t> input_sizes,
    bool planes,
    bool,  // deterministic: always is
    const Tensor& rois,
    std::optional<Tensor> levels,
    std::vector<Tensor> bank_indices,
    std::vector<int64_t> origins,
    std::vector<double> spatial_scales,
    int64_t sampling_ratio,
    std::string merge) {
  const Request request{rois, levels, bank_indices, origins, spatial_scales, sampling_ratio, merge};
  const Pooling pooling = describe_backward(grad_output, inputs, input_sizes, request);
  require_type_of_rois(rois);
  require_same_device(request, inputs, grad_output);
  GradientBanks gradients(grad_output, pooling);
  const Tensor grad = torch::stable::contiguous(grad_output);
  for_compute_type(grad_output.scalar_type(), [&](auto compute) {
    using scalar_t = decltype(compute);
    const CheckedRois<scalar_t> checked(request, pooling);
    const std::vector<Tensor> none;
    const ReadableBanks<scalar_t> banks(multiplies(pooling.merge) ? inputs : none, pooling);
    ReadRoi<scalar_t> read = nullptr;
    for_float_type(
        grad.scalar_type(), [&](auto zero) { read = read_roi<scalar_t, decltype(zero)>; });
    pool_backward(
        checked.table(),
        banks.views,
        read,
        grad.const_data_ptr(),
        views_of<scalar_t>(gradients, pooling));
  });
  return gradients.finish(planes, [](const auto&... arguments) { copy_bank(arguments...); });
}

}  // namespace
}  // namespace fsn_d2

STABLE_TORCH_LIBRARY(fsn_d2, library) {
  library.def(
      "selective_roi_align(Tensor[] inputs, Tensor rois, Tensor? levels, Tensor[] bank_indices, "
      "int[] origins, SymInt[] output_size, float[] spatial_scales, int sampling_ratio, str merge) "
      "-> Tensor");
  library.def(
      "selective_roi_align_backward(Tensor grad_output, Tensor[] inputs, SymInt[] input_sizes, "
      "bool planes, bool deterministic, Tensor rois, Tensor? levels, Tensor[] bank_indices, "
      "int[] origins, float[] spatial_scales, int sampling_ratio, str merge) -> Tensor[]");
}

STABLE_TORCH_LIBRARY_IMPL(fsn_d2, CPU, library) {
  library.impl("selective_roi_align", TORCH_BOX(&fsn_d2::selective_roi_align));
  library.impl("selective_roi_align_backward", TORCH_BOX(&fsn_d2::selective_roi_align_backward));
}
