// oneDNN's float32 product as compiled models call it. Weak: torch builds without oneDNN lack it. Not of the stable
// ABI: csrc/autograd/linear_pointwise.cpp refuses to compile where torch declares it otherwise.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

extern "C" __attribute__((weak)) AOTITorchError aoti_torch_cpu__linear_pointwise(
    AtenTensorHandle x, AtenTensorHandle w, AtenTensorHandle* bias, const char* attribute, const double** scalars,
    int64_t scalars_length, const char** algorithm, AtenTensorHandle* result);
