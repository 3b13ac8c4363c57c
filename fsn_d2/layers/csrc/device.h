// Marks for functions that run on a GPU as well as on the host.

#pragma once

#if defined(__CUDACC__)
#define FSN_D2_DEVICE __device__ __forceinline__
#define FSN_D2_HOST_AND_DEVICE __host__ __device__ __forceinline__
#else
#define FSN_D2_DEVICE inline
#define FSN_D2_HOST_AND_DEVICE inline
#endif
