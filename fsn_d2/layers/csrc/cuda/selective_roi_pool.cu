// selective_roi_pool on CUDA.

#include <torch/csrc/stable/library.h>

#include "launch.h"
#include "pool_op.h"

STABLE_TORCH_LIBRARY_IMPL(fsn_d2, CUDA, library) {
  library.impl("selective_roi_pool", TORCH_BOX(&fsn_d2::selective_roi_pool<fsn_d2::Cuda>));
  library.impl(
      "selective_roi_pool_backward", TORCH_BOX(&fsn_d2::selective_roi_pool_backward<fsn_d2::Cuda>));
}
