// a @ b on CPU through torch, by one thread.
//
// Bits must not depend on the number of threads. The libraries choose how to cut a product, oneDNN even how to cut its
// sums, by the number of threads they may use, and a thread inside a parallel region still reads there the number
// outside. So whoever multiplies says `OneThread` first, and chooses shapes by the sizes of its arguments alone.
//
// float32 goes to aten::mm (MKL) on Intel's processors, and elsewhere, where there is AVX-512, to oneDNN by the
// entry that compiled models call: MKL leaves AVX-512 idle on processors of others. `fashionbert bench ops --only
// masked_patch_embed` measures both beside one another. Torch builds without oneDNN lack that entry, hence the weak
// symbol; torch's own header declares it, so that a torch that changes it does not compile.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <initializer_list>
#include <string_view>

#include "common/tensor.h"
#include "cpu/linear_pointwise.h"

// The OpenMP and the MKL that torch itself calls; a torch without them has nothing to be told.
extern "C" {
__attribute__((weak)) int omp_get_max_threads();
__attribute__((weak)) void omp_set_num_threads(int);
__attribute__((weak)) int MKL_Set_Num_Threads_Local(int);  // returns what it was
}

namespace fashionbert {

// While one lives, whatever the calling thread asks of a library is done by that thread alone, and cut for one.
class OneThread {
 public:
  OneThread() {
    torch::stable::get_num_threads();  // the first such call of a thread sets its number: not later, by a product
    if (omp_set_num_threads) {
      before_ = omp_get_max_threads();
      omp_set_num_threads(1);
    }
    if (MKL_Set_Num_Threads_Local) mkl_before_ = MKL_Set_Num_Threads_Local(1);
  }
  ~OneThread() {
    if (MKL_Set_Num_Threads_Local) MKL_Set_Num_Threads_Local(mkl_before_);
    if (omp_set_num_threads) omp_set_num_threads(before_);
  }
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;

 private:
  int before_ = 1, mkl_before_ = 0;
};

// Calls body(begin, end) on shares of [0, count), each on a thread of its own that multiplies alone.
template <typename Body>
void parallel_products(int64_t count, Body&& body) {
  torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    const OneThread alone;
    body(begin, end);
  });
}

struct Processor {
  bool intel = false, avx512 = false, bfloat16 = false;
};

inline Processor processor() {
  Processor result;
#if defined(__x86_64__)
  __builtin_cpu_init();
  result = {__builtin_cpu_is("intel") != 0, __builtin_cpu_supports("avx512f") != 0,
            __builtin_cpu_supports("avx512bf16") != 0};
#endif
  return result;
}

inline std::string_view environment(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

// Whether ONEDNN_MAX_CPU_ISA keeps oneDNN to one of these.
inline bool onednn_kept_to(std::initializer_list<std::string_view> instruction_sets) {
  const std::string_view most = environment("ONEDNN_MAX_CPU_ISA");
  return std::find(instruction_sets.begin(), instruction_sets.end(), most) != instruction_sets.end();
}

// Whether float32 goes to oneDNN's entry. FASHIONBERT_FLOAT32_PRODUCTS=matmul or onednn overrules the processor.
inline bool float32_by_onednn() {
  const std::string_view wanted = environment("FASHIONBERT_FLOAT32_PRODUCTS");
  STD_TORCH_CHECK(wanted.empty() || wanted == "matmul" || wanted == "onednn",
                  "FASHIONBERT_FLOAT32_PRODUCTS must be matmul or onednn, got ", wanted);
  const Processor here = processor();
  const bool avx512 = here.avx512 && !onednn_kept_to({"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2"});
  const bool better = wanted.empty() ? !here.intel && avx512 : wanted == "onednn";
  return better && aoti_torch_cpu__linear_pointwise;
}

// Whether oneDNN has instructions for bfloat16; without them its products of bfloat16 are slower than float32's.
inline bool bfloat16_is_native() {
  return processor().bfloat16 &&
         !onednn_kept_to({"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX512_CORE", "AVX512_CORE_VNNI"});
}

// A dense (rows, columns) matrix at `data`, outside autograd: products are taken by threads that know no `no_grad`.
template <typename T>
Tensor matrix_at(const T* data, int64_t rows, int64_t columns, const Tensor& like) {
  return torch::stable::from_blob(const_cast<T*>(data), {rows, columns}, {columns, 1}, like.device(),
                                  like.scalar_type());
}

// (m, k) @ (k, n), neither empty, of one dtype; a fresh contiguous tensor.
inline Tensor matrix_product(const Tensor& a, const Tensor& b, bool by_onednn) {
  if (a.scalar_type() != ScalarType::Float || !by_onednn) {
    // Into a given tensor, which autocast leaves alone: without one it multiplies float32 as bfloat16 and returns that.
    const Tensor out = torch::stable::new_empty(a, {a.size(0), b.size(1)});
    std::array<StableIValue, 3> stack{torch::stable::detail::from(a), torch::stable::detail::from(b),
                                      torch::stable::detail::from(out)};
    STD_TORCH_CHECK(torch_call_dispatcher("aten::mm", "out", stack.data(), TORCH_ABI_VERSION) == 0,
                    "a matrix product failed");
    return torch::stable::detail::to<Tensor>(stack[0]);
  }
  const Tensor b_transposed = torch::stable::transpose(b, 0, 1);
  const char* no_algorithm = "";
  AtenTensorHandle result = nullptr;
  STD_TORCH_CHECK(aoti_torch_cpu__linear_pointwise(a.get(), b_transposed.get(), nullptr, "none", nullptr, 0,
                                                   &no_algorithm, &result) == 0,
                  "a float32 matrix product failed");
  return torch::stable::contiguous(Tensor(result));
}

}  // namespace fashionbert
