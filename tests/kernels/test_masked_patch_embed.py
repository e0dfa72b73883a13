"""masked_patch_embed: a masked patch is its position and segment, whatever its feature holds; bad input."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fashionbert_fast.kernels import masked_patch_embed

B, P, D, H = 2, 4, 12, 8


def _inputs(dtype=torch.float32):
    torch.manual_seed(0)
    shapes = {"weight": (H, D), "position": (P, H), "segment": (H,), "ln_weight": (H,), "ln_bias": (H,)}
    return {"features": torch.randn(B, P, D, dtype=dtype), "mask": torch.rand(B, P) < 0.5} | {
        name: torch.randn(shape, dtype=dtype) for name, shape in shapes.items()
    }


def test_matches_the_formula_patch_by_patch():
    x = _inputs()
    out = masked_patch_embed(*x.values())
    for b in range(B):
        for p in range(P):
            feature = torch.zeros(D) if x["mask"][b, p] else x["features"][b, p]
            summed = x["weight"] @ feature + x["position"][p] + x["segment"]
            expected = F.layer_norm(summed, (H,), x["ln_weight"], x["ln_bias"], 1e-12)
            torch.testing.assert_close(out[b, p], expected, rtol=1e-5, atol=1e-5)


def test_a_masked_feature_is_not_looked_at():
    x = _inputs()
    clean = masked_patch_embed(*x.values())
    x["features"][x["mask"]] = float("nan")
    torch.testing.assert_close(masked_patch_embed(*x.values()), clean, rtol=0, atol=0)


def test_gradcheck():
    x = _inputs(torch.float64)
    tensors = [
        x[name].requires_grad_() for name in ("features", "weight", "position", "segment", "ln_weight", "ln_bias")
    ]
    assert torch.autograd.gradcheck(lambda f, *rest: masked_patch_embed(f, x["mask"], *rest), tensors)


@pytest.mark.parametrize("name", ["features", "mask", "weight", "position", "segment", "ln_weight", "ln_bias"])
def test_wrong_shapes_are_named(name):
    x = _inputs()
    x[name] = x[name][..., :-1]
    wrong = {"mask": "patch_mask_BP", "features": "weight_HD", "weight": "weight_HD"}.get(name, name)
    with pytest.raises(ValueError, match=wrong):
        masked_patch_embed(*x.values())


def test_wrong_dtypes_are_named():
    x = _inputs()
    with pytest.raises(ValueError, match="patch_mask_BP"):
        masked_patch_embed(*(x | {"mask": x["mask"].float()}).values())
    with pytest.raises(ValueError, match="position_PH"):
        masked_patch_embed(*(x | {"position": x["position"].double()}).values())
