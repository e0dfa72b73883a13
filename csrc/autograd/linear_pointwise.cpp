// Two declarations of one C function must agree, or this does not compile: ours, and that of the torch built with. Here
// because what is built against the stable ABI may not include the header.
#include <torch/csrc/inductor/aoti_torch/c/shim_cpu.h>

#include "cpu/linear_pointwise.h"
