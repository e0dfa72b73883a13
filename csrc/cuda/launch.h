// How every kernel of this directory is launched: on a GPU, and by tests/cuda_on_cpu/ on a CPU.
#pragma once

#include <type_traits>

#include "cuda/stream.h"

namespace fashionbert {

// kernel<<<blocks, threads, 0, stream>>>(arguments...); `name` is the operator's, for the error.
template <typename... Parameters>
void launch(const char* name, void (*kernel)(Parameters...), int64_t blocks, int threads, cudaStream_t stream,
            std::type_identity_t<Parameters>... arguments) {
#if defined(__CUDACC__)
  kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(threads), 0, stream>>>(arguments...);
  const cudaError_t error = cudaGetLastError();
  STD_TORCH_CHECK(error == cudaSuccess, name, ": CUDA launch failed: ", cudaGetErrorString(error));
#else
  cuda_on_cpu::run(kernel, static_cast<unsigned>(blocks), static_cast<unsigned>(threads), arguments...);
#endif
}

}  // namespace fashionbert
