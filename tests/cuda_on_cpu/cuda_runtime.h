// CUDA C++ on a CPU, for tests: each thread of a block is a thread of the host, so that indexing, shared memory,
// barriers and shuffles of a .cu file run as they are written, under the address and the thread sanitizer too. Found
// before CUDA's own header of this name, by `-I tests/cuda_on_cpu`.
//
// What there is: threadIdx, blockIdx, blockDim, gridDim in x; __shared__ of static size; __syncthreads; shuffles of
// whole warps; atomicAdd. Blocks run one after another. What a GPU leaves undefined, such as a barrier that only part
// of a warp comes to or a shuffle from a lane that has returned, ends the process with a message.
#pragma once

#include <atomic>
#include <barrier>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static  // blocks run one at a time, so one copy is each block's own

using cudaStream_t = void*;
using cudaError_t = int;
constexpr cudaError_t cudaSuccess = 0;
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "none"; }

namespace cuda_on_cpu {

constexpr unsigned kLanes = 32, kMostThreads = 1024;

struct Index {
  unsigned x = 0;
};

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "cuda_on_cpu: %s\n", what);
  std::abort();
}

struct Warp {
  explicit Warp(unsigned lanes) : count(lanes), lanes(lanes) {}
  const unsigned count;
  std::barrier<> lanes;
  alignas(16) unsigned char slots[kLanes][16];
  std::atomic<bool> returned[kLanes] = {};
};

// What the threads of one block share beside their __shared__ memory.
struct Block {
  explicit Block(unsigned threads) : all(threads) {
    for (unsigned first = 0; first < threads; first += kLanes) warps.emplace_back(std::min(kLanes, threads - first));
  }
  std::barrier<> all;
  std::deque<Warp> warps;
};

inline thread_local Block* block = nullptr;
inline thread_local Warp* warp = nullptr;
inline thread_local unsigned lane = 0;

// The `value` of lane `source`, which every lane of the warp asks for something of at once.
template <typename T>
T from_lane(unsigned mask, T value, unsigned source) {
  static_assert(sizeof(T) <= sizeof(Warp::slots[0]));
  if (mask != 0xffffffffu || warp->count != kLanes) fail("a shuffle of less than a whole warp");
  std::memcpy(warp->slots[lane], &value, sizeof(T));
  warp->lanes.arrive_and_wait();
  if (warp->returned[source]) fail("a shuffle from a lane that has returned");
  std::memcpy(&value, warp->slots[source], sizeof(T));
  warp->lanes.arrive_and_wait();
  return value;
}

}  // namespace cuda_on_cpu

inline thread_local cuda_on_cpu::Index threadIdx, blockIdx, blockDim, gridDim;

inline void __syncthreads() { cuda_on_cpu::block->all.arrive_and_wait(); }

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes) {
  return cuda_on_cpu::from_lane(mask, value, cuda_on_cpu::lane ^ static_cast<unsigned>(lanes));
}

template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned lanes) {
  const unsigned source = cuda_on_cpu::lane + lanes;
  return cuda_on_cpu::from_lane(mask, value, source < cuda_on_cpu::kLanes ? source : cuda_on_cpu::lane);
}

template <typename T>
T __shfl_sync(unsigned mask, T value, int source) {
  return cuda_on_cpu::from_lane(mask, value, static_cast<unsigned>(source) % cuda_on_cpu::kLanes);
}

template <typename T>
T atomicAdd(T* address, T value) {
  return std::atomic_ref<T>(*address).fetch_add(value);
}

namespace cuda_on_cpu {

// kernel<<<blocks, threads>>>(arguments...), done when this returns.
template <typename... Parameters>
void run(void (*kernel)(Parameters...), unsigned blocks, unsigned threads, Parameters... arguments) {
  if (blocks == 0 || threads == 0 || threads > kMostThreads) fail("a launch of no blocks, or of too many threads");
  std::deque<Block> each;
  for (unsigned b = 0; b < blocks; ++b) each.emplace_back(threads);
  std::barrier<> between(threads);  // shared memory is the next block's only when all threads are done with it
  const auto work = [&](unsigned t) {
    threadIdx.x = t, blockDim.x = threads, gridDim.x = blocks, lane = t % kLanes;
    for (unsigned b = 0; b < blocks; ++b) {
      blockIdx.x = b, block = &each[b], warp = &each[b].warps[t / kLanes];
      kernel(arguments...);
      warp->returned[lane] = true;  // and no barrier waits for it any more
      warp->lanes.arrive_and_drop();
      block->all.arrive_and_drop();
      between.arrive_and_wait();
    }
  };
  std::vector<std::thread> running;
  for (unsigned t = 0; t < threads; ++t) running.emplace_back(work, t);
  for (auto& thread : running) thread.join();
}

}  // namespace cuda_on_cpu
