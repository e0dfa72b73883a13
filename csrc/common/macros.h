// Code that a CPU test executes and a GPU runs: mark it FB_HOST_DEVICE. Loops over elements take FB_SIMD: vectorised on
// the host (-fopenmp-simd), with float reductions in whatever order lanes give; unrolled on a GPU, where a count is
// a handful known when compiling.
#pragma once

#define FB_PRAGMA(text) _Pragma(#text)
#if defined(__CUDACC__)
#define FB_HOST_DEVICE __host__ __device__ __forceinline__
#define FB_UNROLL _Pragma("unroll")
#define FB_SIMD(...) _Pragma("unroll")
#else
#define FB_HOST_DEVICE inline
#define FB_UNROLL _Pragma("GCC unroll 8")
#define FB_SIMD(...) FB_PRAGMA(omp simd __VA_ARGS__)
#endif
