// Included before everything else in each source of this build: the operators of csrc/cuda/ as operators of CPU
// tensors, under a name of their own, torch.ops.fashionbert_fast_cuda_on_cpu.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

namespace torch::stable::accelerator {
struct NoDeviceGuard {
  explicit NoDeviceGuard(int32_t) {}
};
}  // namespace torch::stable::accelerator
#define DeviceGuard NoDeviceGuard

// The macros by which csrc registers, with another library and device.
#undef STABLE_TORCH_LIBRARY
#undef STABLE_TORCH_LIBRARY_IMPL
#define STABLE_TORCH_LIBRARY(library, m)                                                                           \
  static void define_operators(torch::stable::detail::StableLibrary&);                                             \
  static const torch::stable::detail::StableTorchLibraryInit defined(                                              \
      torch::stable::detail::StableLibrary::Kind::DEF, &define_operators, "fashionbert_fast_cuda_on_cpu", nullptr, \
      __FILE__, __LINE__);                                                                                         \
  void define_operators(torch::stable::detail::StableLibrary& m)
#define STABLE_TORCH_LIBRARY_IMPL(library, device, m)                                                                \
  static void implement_operators(torch::stable::detail::StableLibrary&);                                            \
  static const torch::stable::detail::StableTorchLibraryInit implemented(                                            \
      torch::stable::detail::StableLibrary::Kind::IMPL, &implement_operators, "fashionbert_fast_cuda_on_cpu", "CPU", \
      __FILE__, __LINE__);                                                                                           \
  void implement_operators(torch::stable::detail::StableLibrary& m)

// csrc/cuda/stream.h asks torch for it, and a torch without CUDA has none.
extern "C" __attribute__((weak, visibility("hidden"))) AOTITorchError
aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = nullptr;
  return AOTI_TORCH_SUCCESS;
}
