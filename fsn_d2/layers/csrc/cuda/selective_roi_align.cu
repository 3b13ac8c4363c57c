// selective_roi_align on CUDA. The schema is that of the CPU library (../cpu): this one adds
// kernels to it, and is a second library because a CPU-only torch could not load it.

#include <torch/csrc/stable/library.h>

#include "launch.h"
#include "op.h"

STABLE_TORCH_LIBRARY_IMPL(fsn_d2, CUDA, library) {
  library.impl("selective_roi_align", TORCH_BOX(&fsn_d2::selective_roi_align<fsn_d2::Cuda>));
  library.impl(
      "selective_roi_align_backward",
      TORCH_BOX(&fsn_d2::selective_roi_align_backward<fsn_d2::Cuda>));
}
