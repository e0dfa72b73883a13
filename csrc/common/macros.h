// Code that a CPU test executes and a GPU runs: mark it FB_HOST_DEVICE.
#pragma once

#if defined(__CUDACC__)
#define FB_HOST_DEVICE __host__ __device__ __forceinline__
#define FB_UNROLL _Pragma("unroll")
#else
#define FB_HOST_DEVICE inline
#define FB_UNROLL _Pragma("GCC unroll 8")
#endif
