// Host-side helpers behind pybind11. `build_info` tells `fashionbert doctor` how the native code was built;
// `keep_freed_memory` sets the C library's allocator up for a training loop.
#include <pybind11/pybind11.h>

#if defined(__GLIBC__)
#include <malloc.h>
#endif

namespace py = pybind11;

namespace {

// Freed memory stays with the process: no block is mapped on its own, the heap's top is never given back. True where
// the C library could be told, which is glibc.
bool keep_freed_memory() {
#if defined(__GLIBC__)
  return mallopt(M_MMAP_MAX, 0) == 1 && mallopt(M_TRIM_THRESHOLD, -1) == 1;
#else
  return false;
#endif
}

}  // namespace

PYBIND11_MODULE(_host, m) {
  m.doc() = "Host-side helpers of fashionbert_fast";
  m.def(
      "build_info",
      [] {
        py::dict info;
        info["compiler"] = FASHIONBERT_COMPILER;
        info["torch"] = FASHIONBERT_TORCH;
        info["levels"] = FASHIONBERT_LEVELS;
        info["native_needs"] = FASHIONBERT_NATIVE_NEEDS;
        info["cuda"] = FASHIONBERT_CUDA_STATE;
        return info;
      },
      "How the native code was built: compiler, torch, levels of processors, what `native` needs "
      "of one (flags of /proc/cpuinfo), and what became of the CUDA sources.");
  m.def("keep_freed_memory", &keep_freed_memory,
        "Have the C library keep what is freed, for the next request; False where it cannot be told.");
}
