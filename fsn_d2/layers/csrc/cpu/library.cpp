// The operator library fsn_d2: its ops by their schemas. The kernels are registered beside their
// code, those of CUDA in a library of their own.
//
// Built against PyTorch's stable ABI and free of Python symbols: one library serves every torch
// from 2.11 on, and a C++ program can load it.

#include <torch/csrc/stable/library.h>

#include "../schemas.h"

STABLE_TORCH_LIBRARY(fsn_d2, library) {
  for (const char* schema : fsn_d2::kSchemas) {
    library.def(schema);
  }
}
