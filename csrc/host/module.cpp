// Host-side helpers behind pybind11. `build_info` tells `fashionbert doctor` how the native code was built.
#include <pybind11/pybind11.h>

namespace py = pybind11;

PYBIND11_MODULE(_host, m) {
  m.doc() = "Host-side helpers of fashionbert_fast";
  m.def(
      "build_info",
      [] {
        py::dict info;
        info["compiler"] = FASHIONBERT_COMPILER;
        info["march"] = FASHIONBERT_MARCH;
        info["cuda"] = FASHIONBERT_CUDA_STATE;
        return info;
      },
      "How the native code was built: compiler, -march and what became of the CUDA sources.");
}
