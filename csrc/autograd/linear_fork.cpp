// x @ weight^T, and x itself for the residual that it is as well: in the backward the matmul adds its product to the
// residual's gradient, where autograd would read both and write their sum in a pass of its own. Composite: whatever
// traces or counts operators sees the matmuls. Beside another torch than this library's,
// fashionbert_fast/kernels/_linear_fork.py leaves the sum to autograd.
#include <ATen/ATen.h>
#include <ATen/TensorSubclassLikeUtils.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <tuple>

namespace fashionbert {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Whether a tensor's only other holder is its own Python object, which nobody holds but the tensor: what a backward
// written in Python returns. Torch before 2.13 does not tell.
template <typename Slot>
bool only_by_its_python_object(const at::Tensor& tensor, const Slot* slot) {
  if constexpr (requires { slot->has_unique_reference(); })
    return tensor.use_count() == 2 && slot->has_unique_reference();
  else
    return false;
}

// Whether the gradient may be written over, as autograd's own sums do: where nobody else holds it.
bool is_ours(const at::Tensor& grad) {
  const bool held_once =
      grad.use_count() == 1 || only_by_its_python_object(grad, grad.unsafeGetTensorImpl()->pyobj_slot());
  return held_once && !at::GradMode::is_enabled() && grad.is_non_overlapping_and_dense() &&
         !grad.key_set().has_any(at::kTensorSubclassLike);
}

struct LinearFork : torch::autograd::Function<LinearFork> {
  static variable_list forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& weight) {
    ctx->save_for_backward({x, weight});
    ctx->set_materialize_grads(false);
    return {at::linear(x, weight), x};
  }

  // By reference: a copy would hold the gradients, too.
  static variable_list backward(AutogradContext* ctx, variable_list& grads) {
    const at::Tensor &of_product = grads[0], &of_residual = grads[1];
    if (!of_product.defined()) return {of_residual, at::Tensor()};
    const auto saved = ctx->get_saved_variables();
    const at::Tensor &x = saved[0], &weight = saved[1];
    at::Tensor grad_x, grad_weight;
    if (ctx->needs_input_grad(1)) grad_weight = of_product.t().mm(x);
    if (ctx->needs_input_grad(0)) {
      if (!of_residual.defined())
        grad_x = of_product.mm(weight);
      else if (is_ours(of_residual))
        grad_x = of_residual.addmm_(of_product, weight);
      else
        grad_x = of_residual + of_product.mm(weight);
    }
    return {grad_x, grad_weight};
  }
};

std::tuple<at::Tensor, at::Tensor> linear_fork(const at::Tensor& x, const at::Tensor& weight) {
  const variable_list outputs = LinearFork::apply(x, weight);
  return {outputs[0], outputs[1]};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(fashionbert_fast, m) {
  m.def("linear_fork(Tensor x, Tensor weight) -> (Tensor product, Tensor x)");
}
TORCH_LIBRARY_IMPL(fashionbert_fast, CompositeImplicitAutograd, m) { m.impl("linear_fork", &linear_fork); }

}  // namespace fashionbert
