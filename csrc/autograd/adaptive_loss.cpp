// adaptive_loss's autograd, in C++: torch.library.register_autograd was two fifths of a forward and backward.
// The stable ABI has no autograd, so this small library alone is bound to the torch it was built with; beside another
// torch, kernels/adaptive_loss.py registers the same backward in Python.
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <optional>
#include <tuple>

namespace fashionbert {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Outputs = std::tuple<at::Tensor, at::Tensor>;

Outputs forward(const at::Tensor& losses, double alpha, bool detach_weights) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("fashionbert_fast::adaptive_loss", "")
                             .typed<Outputs(const at::Tensor&, double, bool)>();
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  return op.call(losses, alpha, detach_weights);
}

using Gradient = std::optional<at::Tensor>;

at::Tensor backward(const Gradient& grad_loss, const Gradient& grad_weights, const at::Tensor& losses, double alpha,
                    bool detach_weights) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("fashionbert_fast::adaptive_loss_backward", "")
                             .typed<at::Tensor(const Gradient&, const Gradient&, const at::Tensor&, double, bool)>();
  return op.call(grad_loss, grad_weights, losses, alpha, detach_weights);
}

struct AdaptiveLoss : torch::autograd::Function<AdaptiveLoss> {
  static variable_list forward(AutogradContext* ctx, const at::Tensor& losses, double alpha, bool detach_weights) {
    ctx->save_for_backward({losses});
    ctx->set_materialize_grads(false);
    ctx->saved_data["alpha"] = alpha;
    ctx->saved_data["detach_weights"] = detach_weights;
    auto [loss, weights] = fashionbert::forward(losses, alpha, detach_weights);
    if (detach_weights) ctx->mark_non_differentiable({weights});
    return {loss, weights};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto given = [](const at::Tensor& grad) { return grad.defined() ? Gradient(grad) : std::nullopt; };
    return {fashionbert::backward(given(grads[0]), given(grads[1]), ctx->get_saved_variables()[0],
                                  ctx->saved_data["alpha"].toDouble(), ctx->saved_data["detach_weights"].toBool()),
            at::Tensor(), at::Tensor()};
  }
};

Outputs differentiable(const at::Tensor& losses, double alpha, bool detach_weights) {
  if (!at::GradMode::is_enabled() || !losses.requires_grad()) return forward(losses, alpha, detach_weights);
  const variable_list outputs = AdaptiveLoss::apply(losses, alpha, detach_weights);
  return {outputs[0], outputs[1]};
}

}  // namespace

TORCH_LIBRARY_IMPL(fashionbert_fast, Autograd, m) { m.impl("adaptive_loss", &differentiable); }

}  // namespace fashionbert
