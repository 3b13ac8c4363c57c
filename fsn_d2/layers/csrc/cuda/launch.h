// CUDA as the Machine of op.h: the device and stream that PyTorch has chosen, and the launch.

#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include <algorithm>
#include <cstdint>
#include <limits>

#include "../arguments.h"
#include "problem.h"

namespace fsn_d2 {

struct CudaBlock {
  __device__ __forceinline__ int thread() const {
    return static_cast<int>(threadIdx.x);
  }

  __device__ __forceinline__ int threads() const {
    return static_cast<int>(blockDim.x);
  }

  __device__ __forceinline__ int64_t number() const {
    return blockIdx.x;
  }

  __device__ __forceinline__ int64_t blocks() const {
    return gridDim.x;
  }

  __device__ __forceinline__ void sync() const {
    __syncthreads();
  }

  template <typename scalar_t>
  __device__ __forceinline__ void add(scalar_t* target, scalar_t value) const {
    atomicAdd(target, value);
  }
};

// Registers are shared out so that this many fit: the kernels wait for memory more than they
// compute.
constexpr int kBlocksPerProcessor = 4;

template <typename Kernel>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor)
    run_kernel(const __grid_constant__ Kernel kernel, int64_t tasks) {
  extern __shared__ int4 shared[];
  kernel(CudaBlock{}, tasks, reinterpret_cast<char*>(shared));
}

class Cuda {
 public:
  explicit Cuda(const Tensor& like) : guard_(like.get_device_index()) {
    const int32_t device = like.get_device_index();
    require_success(cudaSetDevice(device), "cudaSetDevice");  // in this library's own runtime
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }

  template <typename Kernel>
  void launch(const char* name, const Kernel& kernel, int64_t tasks, int64_t shared_bytes) const {
    if (tasks == 0) {
      return;
    }
    const auto blocks =
        static_cast<unsigned>(std::min<int64_t>(tasks, std::numeric_limits<int32_t>::max()));
    run_kernel<<<blocks, kThreads, static_cast<size_t>(shared_bytes), stream_>>>(kernel, tasks);
    require_success(cudaGetLastError(), name);
  }

 private:
  static void require_success(cudaError_t error, const char* name) {
    require(
        error == cudaSuccess,
        "CUDA could not start ",
        name,
        ": ",
        cudaGetErrorString(error),
        " (",
        cudaGetErrorName(error),
        ")",
        remedy(error));
  }

  static const char* remedy(cudaError_t error) {
    switch (error) {
      case cudaErrorNoKernelImageForDevice:
        return "; the library was built for other GPUs: build it on this machine, or with "
               "FORCE_CUDA=1 for all";
      case cudaErrorInsufficientDriver:
      case cudaErrorUnsupportedPtxVersion:
        return "; the driver is older than the CUDA toolkit that the library was built with: "
               "update the driver, or build with an older toolkit";
      default:
        return "";
    }
  }

  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};

}  // namespace fsn_d2
