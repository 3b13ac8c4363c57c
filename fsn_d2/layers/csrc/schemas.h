// The signatures of the ops, for every library that defines them.

#pragma once

namespace fsn_d2 {

// Per op and its backward; the same in _align_op.py and _pool_op.py.
constexpr const char* kSchemas[] = {
    "selective_roi_align(Tensor[] inputs, Tensor rois, Tensor? levels, Tensor[] bank_indices, "
    "int[] origins, SymInt[] output_size, float[] spatial_scales, int sampling_ratio, str merge) "
    "-> Tensor",
    "selective_roi_align_backward(Tensor grad_output, Tensor[] inputs, SymInt[] input_sizes, "
    "bool planes, bool deterministic, Tensor rois, Tensor? levels, Tensor[] bank_indices, "
    "int[] origins, float[] spatial_scales, int sampling_ratio, str merge) -> Tensor[]",
    "selective_roi_pool(Tensor[] inputs, Tensor rois, Tensor? levels, Tensor bank_index, "
    "SymInt[] output_size, float[] spatial_scales, str mode) -> Tensor",
    "selective_roi_pool_backward(Tensor grad_output, Tensor[] inputs, SymInt[] input_sizes, "
    "bool planes, bool deterministic, Tensor rois, Tensor? levels, Tensor bank_index, "
    "float[] spatial_scales, str mode) -> Tensor[]",
};

}  // namespace fsn_d2
