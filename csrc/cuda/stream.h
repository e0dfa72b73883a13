// The current CUDA stream of a tensor's device, through torch's stable C ABI.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>

// Weak: the symbol lives in libtorch_cuda, so this library still loads beside a CPU-only torch, where nothing calls it.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index,
                                                                                   void** ret_stream);

namespace fashionbert {

inline cudaStream_t current_stream(const torch::stable::Tensor& tensor) {
  void* stream = nullptr;
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream != nullptr &&
                      aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream) == 0,
                  "fashionbert_fast: this torch has no CUDA runtime; install a CUDA build of torch");
  return static_cast<cudaStream_t>(stream);
}

}  // namespace fashionbert
