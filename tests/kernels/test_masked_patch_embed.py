"""masked_patch_embed: the definition, random shapes against float64, packing, 8-bit features, dropout, Triton, errors.

Shapes: B pairs, I images, P patches, D patch feature, H hidden, N text tokens, R rows of the packed sequence.
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from row_cases import allowed_error, at_thread_counts, check_as_exact, same_bits

from fashionbert_fast.kernels import PackedRows, masked_patch_embed
from fashionbert_fast.kernels.masked_patch_embed import FLOAT8, check_float8, masked_patch_embed_reference

OP = torch.ops.fashionbert_fast.masked_patch_embed.default
NARROW = (torch.float32, torch.bfloat16, torch.float16)
NAMES = ("features", "mask", "weight", "position", "segment", "ln_weight", "ln_bias")
SEED = torch.tensor([2**61 + 987654321987])


def _tensors(B, P, D, H, generator, dtype=torch.float32, images=None, feature_dtype=None, strided=False):
    """The positional arguments in `dtype`, numbers of a training run's size; some masks with all or no patch."""

    def normal(*shape, scale=1.0):
        x = torch.randn(shape, generator=generator, dtype=torch.float64) * scale
        return x

    def strides(x):
        """The same numbers with gaps between the elements of a row, or transposed."""
        if not strided or x.dim() < 2:
            return x
        return torch.stack([x, x], -1)[..., 0] if strided == "gaps" else x.transpose(-1, -2).contiguous().mT

    share = (0.1, 0.5, 0.0, 1.0)[int(torch.randint(4, (), generator=generator))]
    mask_BP = torch.rand(B, P, generator=generator) < share
    scales = {"weight": D**-0.5, "position": 0.5, "segment": 0.5}
    shapes = {"weight": (H, D), "position": (P, H), "segment": (H,), "ln_weight": (H,), "ln_bias": (H,)}
    features = normal(B if images is None else images, P, D)
    x = {"features": strides(features.to(feature_dtype or dtype)), "mask": strides(mask_BP)}
    return x | {name: strides(normal(*shape, scale=scales.get(name, 1.0)).to(dtype)) for name, shape in shapes.items()}


def _case(dtype, seed):
    """A random problem: tensors and keywords."""
    generator = torch.Generator().manual_seed(seed)

    def pick(options):
        return options[int(torch.randint(len(options), (), generator=generator))]

    B, P = pick((0, 1, 2, 5, 17)), pick((1, 2, 7, 16, 33))
    D, H = pick((1, 5, 16, 100, 128, 129, 300)), pick((2, 3, 16, 31, 64, 200))
    images = pick((None, None, 1, 3))
    feature_dtype = dtype if dtype == torch.float64 else pick((*NARROW, torch.int8, *FLOAT8))
    tensors = _tensors(B, P, D, H, generator, dtype, images, strided=pick((False, "gaps", "transposed")))
    keywords = {"site": pick((0, 7))}
    if feature_dtype == torch.int8:
        tensors["features"] = torch.randint(-127, 128, tensors["features"].shape, generator=generator).to(torch.int8)
    tensors["features"] = tensors["features"].to(feature_dtype)
    if feature_dtype in (torch.int8, *FLOAT8) and (feature_dtype == torch.int8 or pick((True, False))):
        keywords["scale_IP"] = 0.02 * torch.rand(tensors["features"].shape[:2], generator=generator) + 0.01
    if images is not None:
        keywords["image_index_B"] = torch.randint(images, (B,), generator=generator)
    if pick((True, False)):
        keywords |= {"feature_dropout": pick((0.0, 0.1, 0.9)), "hidden_dropout": pick((0.0, 0.1, 1.0)), "seed": SEED}
    if pick((True, False)):
        N = pick((0, 1, 9))
        R = N + B * P + pick((0, 4))
        starts = torch.randperm(B, generator=generator) * P + pick((0, R - N - B * P))
        left = torch.ones(R, dtype=torch.bool)
        left[(starts[:, None] + torch.arange(P)).flatten()] = False
        rows = left.nonzero()[:, 0]
        rows = rows[torch.randperm(len(rows), generator=generator)[:N]]
        text_NH = torch.randn(N, H, generator=generator, dtype=torch.float64).to(dtype)
        keywords["packed"] = PackedRows(text_NH, rows, starts, R)
    return tensors, keywords


def _run(function, tensors, keywords, dtype=None):
    """Output and gradients, the incoming gradient being fixed random numbers. ``dtype``: compute in that instead."""
    tensors = {name: x if x.dtype == torch.bool or dtype is None else x.to(dtype) for name, x in tensors.items()}
    keywords = dict(keywords)
    if dtype is not None and "scale_IP" in keywords:  # float64 features are dequantised beforehand
        tensors["features"] = tensors["features"] * keywords.pop("scale_IP").double()[..., None]
    leaves = [x.detach().requires_grad_() for name, x in tensors.items() if name != "mask" and x.is_floating_point()]
    leaves = [x for x in leaves if x.dtype not in FLOAT8] if dtype is None else leaves
    replaced = iter(leaves)
    arguments = [
        next(replaced) if name != "mask" and x.is_floating_point() and x.dtype not in FLOAT8 else x
        for name, x in tensors.items()
    ]
    if "packed" in keywords:
        text_NH = keywords["packed"].text_NH
        leaves.append(text_NH.to(dtype or text_NH.dtype).detach().requires_grad_())
        keywords["packed"] = keywords["packed"]._replace(text_NH=leaves[-1])
    out = function(*arguments, **keywords)
    incoming = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradients = torch.autograd.grad(out, leaves, incoming.to(tensors["weight"].dtype).to(out.dtype), allow_unused=True)
    return [out.detach(), *gradients]


def _poison(*shapes, dtype):
    """Memory that the allocator will hand out next is full of NaN."""
    for shape in shapes:
        torch.full(shape, float("nan"), dtype=dtype)


def _same_gradients(tensors, result, exact):
    """`exact` less the gradient of 8-bit features, which a float64 run has and a real one has not."""
    if tensors["features"].dtype in (torch.int8, *FLOAT8):
        exact = [exact[0], *exact[2:]]
    return list(zip(result, exact, strict=True))


def _errors(pairs):
    """The largest error and the root mean square one, in units of the largest exact value."""
    result = []
    for a, b in pairs:
        size = b.abs().max().clamp_min(1e-3) if b.numel() else 1
        error = (a.double() - b) / size
        result.append(
            [float(error.abs().max()), float(error.norm() / max(error.numel(), 1) ** 0.5)] if b.numel() else [0.0, 0.0]
        )
    return torch.tensor(result)


@pytest.mark.parametrize("dtype", [torch.float64, *NARROW])
def test_random_shapes_err_at_most_twice_as_much_as_plain_pytorch(dtype):
    """100 cases a dtype: empty, one row, odd widths, all and none masked, gathered images, every stored dtype, strided,
    packed, dropped."""
    ours, plain = [], []
    for seed in range(100):
        tensors, keywords = _case(dtype, seed)
        exact = _run(masked_patch_embed_reference, tensors, keywords, torch.float64)
        mask_BP, H = tensors["mask"], tensors["weight"].shape[0]
        _poison((mask_BP.numel(), H), (*mask_BP.shape, H), (H, tensors["weight"].shape[1]), dtype=dtype)
        mine = _run(masked_patch_embed, tensors, keywords)
        theirs = _run(masked_patch_embed_reference, tensors, keywords)
        for x, y in zip(mine, theirs, strict=True):
            assert x.dtype == y.dtype and x.shape == y.shape and x.isfinite().all()
        ours.append(_errors(_same_gradients(tensors, mine, exact))[:6])
        plain.append(_errors(_same_gradients(tensors, theirs, exact))[:6])
    floor = 1e-6 if dtype == torch.float64 else 0.0  # plain is its own oracle; measured 2e-7: dropout's float32 scale
    check_as_exact(torch.cat(ours).tolist(), torch.cat(plain).tolist(), floor, allowed=allowed_error(dtype, 300))


@pytest.mark.parametrize("dtype", NARROW)
def test_error_at_a_real_width_at_most_twice_plain_pytorch(dtype):
    """Output and every gradient on their own: several chunks of rows, several blocks of columns."""
    tensors = _tensors(40, 36, 600, 192, torch.Generator().manual_seed(5), dtype)
    tensors["mask"] = torch.rand(40, 36) < 0.1
    exact = _run(masked_patch_embed_reference, tensors, {}, torch.float64)
    pair = (masked_patch_embed, masked_patch_embed_reference)
    mine, theirs = (_errors(zip(_run(f, tensors, {}), exact, strict=True)) for f in pair)
    allowed = allowed_error(dtype, int((~tensors["mask"]).sum()))  # the weight gradient's sums are the longest
    assert (mine <= (2 * theirs).clamp_min(allowed)).all(), f"{mine} against {theirs}, {allowed}"


def test_matches_the_formula_patch_by_patch():
    B, P, H, D = 2, 4, 8, 12
    x = _tensors(B, P, D, H, torch.Generator().manual_seed(0))
    x["mask"] = torch.rand(B, P) < 0.5
    out = masked_patch_embed(*x.values())
    for b in range(B):
        for p in range(P):
            feature = torch.zeros(D) if x["mask"][b, p] else x["features"][b, p]
            summed = x["weight"] @ feature + x["position"][p] + x["segment"]
            expected = F.layer_norm(summed, (H,), x["ln_weight"], x["ln_bias"], 1e-12)
            torch.testing.assert_close(out[b, p], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("feature_dtype", [*NARROW, *FLOAT8])
def test_a_masked_feature_is_not_looked_at(feature_dtype):
    """Neither forward nor backward."""
    x = _tensors(3, 5, 130, 16, torch.Generator().manual_seed(0), feature_dtype=feature_dtype)
    x["mask"] = torch.rand(3, 5) < 0.5
    clean = _run(masked_patch_embed, x, {})
    x["features"] = x["features"].float().masked_fill(x["mask"][..., None], float("nan")).to(feature_dtype)
    assert all(torch.equal(a, b) for a, b in zip(_run(masked_patch_embed, x, {}), clean, strict=True))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity_stay_in_their_row(bad):
    x = _tensors(2, 3, 17, 8, torch.Generator().manual_seed(0))
    x["mask"], x["features"][1, 2, 16] = torch.zeros(2, 3, dtype=torch.bool), bad
    out = masked_patch_embed(*x.values())
    assert not out[1, 2].isfinite().any() and out.flatten(0, 1)[:5].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_means_and_constant_rows(dtype):
    """LayerNorm far from zero, and of rows without variance: as plain PyTorch has it, finite."""
    x = _tensors(4, 8, 64, 96, torch.Generator().manual_seed(0), dtype)
    x["segment"] = x["segment"] + 300
    exact = _run(masked_patch_embed_reference, x, {}, torch.float64)
    pair = (masked_patch_embed, masked_patch_embed_reference)
    mine, theirs = (_errors(zip(_run(f, x, {}), exact, strict=True)) for f in pair)
    assert (mine <= 2 * theirs + 1e-7).all()
    x["mask"][:], x["position"], x["segment"] = True, x["position"] * 0, torch.full_like(x["segment"], 0.5)
    out = _run(masked_patch_embed, x, {})
    assert torch.equal(out[0], x["ln_bias"].expand_as(out[0])) and all(g.isfinite().all() for g in out)


def test_dropout_is_the_generators():
    """The result is dropped by site + 1, the feature by site; rate and scale are right."""
    x = _tensors(8, 16, 256, 64, torch.Generator().manual_seed(0))
    x["ln_bias"] = x["ln_bias"] + 5
    out = masked_patch_embed(*x.values(), hidden_dropout=0.25, seed=SEED, site=3)
    plain = masked_patch_embed(*x.values())
    kept = out != 0
    torch.testing.assert_close(out[kept], plain[kept] / 0.75)
    assert abs(kept.double().mean() - 0.75) < 0.02
    again = masked_patch_embed(*x.values(), hidden_dropout=0.25, seed=SEED, site=3)
    assert torch.equal(out, again)
    other = masked_patch_embed(*x.values(), hidden_dropout=0.25, seed=SEED, site=4)
    assert abs(((other != 0) == kept).double().mean() - (0.75**2 + 0.25**2)) < 0.02
    everything = masked_patch_embed(*x.values(), feature_dropout=1.0, seed=SEED)
    x["mask"][:] = True
    assert torch.equal(everything, masked_patch_embed(*x.values()))


PRODUCTS = (  # dtype, and for float32 the library: csrc/cpu/matrix_product.h has the choice
    (torch.float32, "matmul"),
    (torch.float32, "onednn"),
    (torch.bfloat16, ""),
    (torch.float16, ""),
)
CHUNK, BLOCK = 352, 256  # rows and columns of a product of 1,400 rows, as csrc/cpu/masked_patch_embed.cpp cuts it


def _for_threads(dtype, pairs=24, width=520):
    """Arguments with several chunks of rows and blocks of columns, images shared among pairs; keywords."""
    generator = torch.Generator().manual_seed(0)
    x = _tensors(pairs, 64, width, 96, generator)
    x["mask"] = torch.rand(pairs, 64, generator=generator) < 0.1
    index_B = torch.randint(3, (pairs,), generator=generator)
    keywords = {"seed": SEED, "feature_dropout": 0.1, "hidden_dropout": 0.1, "image_index_B": index_B}
    return {name: t if name == "mask" else t.to(dtype) for name, t in x.items()}, keywords


def _torch_keeps_its_bits(dtype) -> bool:
    """Whether plain products of the shapes we use are the same on 1, 2 and 3 threads."""
    generator = torch.Generator().manual_seed(0)
    rows_KD, weight_HD, grad_KH = (
        torch.randn(shape, generator=generator).to(dtype) for shape in ((1408, 520), (96, 520), (1408, 96))
    )

    def products():
        block_KC = rows_KD[:, :BLOCK].contiguous()
        return [rows_KD[:CHUNK] @ weight_HD.T, grad_KH.T @ block_KC, grad_KH[:CHUNK] @ weight_HD[:, :BLOCK]]

    return same_bits(at_thread_counts(products))


def _torch_takes_our_word() -> bool:
    """Whether products run on the OpenMP that csrc/cpu/matrix_product.h tells to use one thread."""
    return "ATen parallel backend: OpenMP" in torch.__config__.parallel_info()


@pytest.mark.parametrize("pairs", [24, 1])  # chunks for every thread, and one that the calling thread multiplies
@pytest.mark.parametrize(("dtype", "library"), PRODUCTS)
def test_same_bits_on_any_number_of_threads(dtype, library, pairs, monkeypatch):
    monkeypatch.setenv("FASHIONBERT_FLOAT32_PRODUCTS", library)
    if not (_torch_takes_our_word() or _torch_keeps_its_bits(dtype)):
        pytest.skip("this torch multiplies on threads of its own, with other bits on another number of them")
    x, keywords = _for_threads(dtype, pairs)
    assert same_bits(at_thread_counts(lambda: _run(masked_patch_embed, x, keywords)))


@pytest.mark.parametrize(("dtype", "library"), PRODUCTS)
def test_all_but_the_products_has_the_same_bits_whatever_the_library(dtype, library, monkeypatch):
    """The forward's products are of small integers, which every order sums to the same; those of the backward are not,
    and are left out."""
    monkeypatch.setenv("FASHIONBERT_FLOAT32_PRODUCTS", library)
    x, keywords = _for_threads(dtype)
    x["features"], x["weight"] = (t.mul(2).round().clamp(-4, 4) for t in (x["features"], x["weight"] * 520**0.5))
    keywords["feature_dropout"] = 0.5  # its scale is 2
    kept = [0, *range(3, 7)]  # not the gradients of features and weight
    assert same_bits(at_thread_counts(lambda: [_run(masked_patch_embed, x, keywords)[i] for i in kept]))


def _verbose(capfd, mode, run) -> str:
    """What a matrix library prints of its products during ``run``."""
    with mode:
        run()
    ctypes.CDLL(None).fflush(None)
    return capfd.readouterr().out


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="this torch has no MKL")
@pytest.mark.parametrize("pairs", [24, 1])
def test_mkl_multiplies_with_one_thread(pairs, monkeypatch, capfd):
    """Inside our threads and on the calling one, which gets its number of threads back."""
    monkeypatch.setenv("FASHIONBERT_FLOAT32_PRODUCTS", "matmul")
    x, keywords = _for_threads(torch.float32, pairs)
    verbose = torch.backends.mkl.verbose(torch.backends.mkl.VERBOSE_ON)

    def run():
        printed = _verbose(capfd, verbose, lambda: _run(masked_patch_embed, x, keywords))
        threads = re.findall(r"SGEMM.* NThr:(\d+)", printed)
        assert len(threads) >= 7 and set(threads) == {"1"}, printed
        assert torch.get_num_threads() == 3
        return []

    at_thread_counts(run, counts=(3,))


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
@pytest.mark.parametrize("pairs", [24, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_onednn_is_asked_for_one_thread(dtype, pairs, monkeypatch, capfd):
    """It keeps each product it compiled by shape and by the threads it may use: on 2 and 3 it compiles no other."""
    monkeypatch.setenv("FASHIONBERT_FLOAT32_PRODUCTS", "onednn")
    x, keywords = _for_threads(dtype, pairs, width=544)  # which no other test has had compiled
    verbose = torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON_CREATION)
    printed = at_thread_counts(lambda: [_verbose(capfd, verbose, lambda: _run(masked_patch_embed, x, keywords))])
    assert re.search(r"create:cache_(hit|miss),cpu,(matmul|inner_product)", printed[0][0])
    for (more,) in printed[1:]:
        assert "create:cache_miss" not in more and "create:cache_hit" in more


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="this torch has no MKL")
@pytest.mark.parametrize("most", ["AVX2", "AVX2_VNNI"])
def test_mkl_multiplies_where_onednn_is_kept_from_avx512(most, monkeypatch, capfd):
    """Measured on an AMD EPYC: oneDNN's AVX2 products took 1.1x the time of MKL's."""
    monkeypatch.delenv("FASHIONBERT_FLOAT32_PRODUCTS", raising=False)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", most)
    x, keywords = _for_threads(torch.float32, 1)
    verbose = torch.backends.mkl.verbose(torch.backends.mkl.VERBOSE_ON)
    assert "SGEMM" in _verbose(capfd, verbose, lambda: _run(masked_patch_embed, x, keywords))


def test_an_unknown_library_is_refused(monkeypatch):
    monkeypatch.setenv("FASHIONBERT_FLOAT32_PRODUCTS", "blas")
    with pytest.raises(RuntimeError, match="FASHIONBERT_FLOAT32_PRODUCTS must be matmul or onednn, got blas"):
        masked_patch_embed(*_for_threads(torch.float32, 1)[0].values())


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_gradcheck(p):
    generator = torch.Generator().manual_seed(0)
    x = _tensors(3, 4, 6, 5, generator, torch.float64, images=2)
    mask_BP, text_NH = torch.rand(3, 4, generator=generator) < 0.4, torch.randn(2, 5, dtype=torch.float64)
    tensors = [t.requires_grad_() for name, t in x.items() if name != "mask"]
    keywords = {"image_index_B": torch.tensor([1, 1, 0]), "feature_dropout": p, "hidden_dropout": p, "seed": SEED}
    assert torch.autograd.gradcheck(lambda f, *rest: masked_patch_embed(f, mask_BP, *rest, **keywords), tensors)
    rows_N, rows_B = torch.tensor([4, 13]), torch.tensor([9, 0, 5])
    assert torch.autograd.gradcheck(
        lambda text, f, *rest: masked_patch_embed(
            f, mask_BP, *rest, **keywords, packed=PackedRows(text, rows_N, rows_B, 15)
        ),
        [text_NH.requires_grad_(), *tensors],
    )


def test_gradients_not_asked_for_are_not_computed():
    x = _tensors(2, 3, 8, 4, torch.Generator().manual_seed(0))
    x["mask"][:] = False
    x["position"].requires_grad_()
    masked_patch_embed(*x.values()).sum().backward()
    assert x["position"].grad is not None and x["weight"].grad is None
    arguments = [t.detach() for t in x.values()]
    *_, projection, stats = OP(*arguments, 1e-12, None, None, 0.0, 0.0, None, 0, None, None, None, 0)
    empty = torch.ops.fashionbert_fast.masked_patch_embed_backward(
        torch.ones(2, 3, 4), *arguments[:6], None, None, 0.0, 0.0, None, 0, None, projection, stats, False, False
    )
    assert empty[0].numel() == 0 and empty[1].numel() == 0


@pytest.mark.parametrize("most", ["", "AVX2"])  # of oneDNN: without bfloat16 instructions, products are in float32
@pytest.mark.parametrize("library", ["matmul", "onednn"])
def test_autocast_computes_in_its_dtype(library, most, monkeypatch):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", most)
    monkeypatch.setenv("FASHIONBERT_FLOAT32_PRODUCTS", library)
    x = _tensors(2, 3, 40, 16, torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        out = masked_patch_embed(*x.values())
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), masked_patch_embed(*x.values()), rtol=0.05, atol=0.05)


def _operator_arguments(dtype, packed, seed=3):
    x = _tensors(3, 4, 9, 6, torch.Generator().manual_seed(seed), dtype)
    tensors = [t if name == "mask" else t.requires_grad_() for name, t in x.items()]
    packing = (torch.randn(2, 6, dtype=dtype).requires_grad_(), torch.tensor([12, 0]), torch.tensor([1, 5, 9]) + 5, 18)
    packing = packing if packed else (None, None, None, 0)
    return (*tensors, 1e-12, torch.tensor([2, 0, 0]), None, 0.1, 0.2, SEED, 5, *packing)


@pytest.mark.parametrize("packed", [False, True])
def test_opcheck(packed):
    for dtype in (torch.float64, *NARROW):
        arguments = list(_operator_arguments(dtype, packed))
        if packed:
            arguments[15], arguments[16] = torch.tensor([17, 0]), torch.tensor([1, 5, 9])
        torch.library.opcheck(OP, tuple(arguments))


def test_full_graph_compile():
    def step(features_IPD, mask_BP, *parameters):
        return masked_patch_embed(features_IPD * 2, mask_BP, *parameters, hidden_dropout=0.5, seed=SEED) * 3

    def packed(features_IPD, mask_BP, *parameters):
        rows = PackedRows(parameters[2][None], torch.tensor([0]), torch.tensor([1, 6, 11]), 17)
        return masked_patch_embed(features_IPD, mask_BP, *parameters, packed=rows)

    for function in (step, packed):
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        for dtype in (torch.float32, torch.bfloat16):
            x = _tensors(3, 5, 17, 8, torch.Generator().manual_seed(0), dtype)
            for one, other in zip(_run(compiled, x, {}), _run(function, x, {}), strict=True):
                assert torch.equal(one, other)


# Triton --------------------------------------------------------------------------------------------------------------
def check_triton_in_the_interpreter(cases_a_dtype: int) -> None:
    """Run by a process of its own with TRITON_INTERPRET=1: the launchers on CPU tensors, the CPU's cases, float64."""
    from fashionbert_fast.kernels.triton import masked_patch_embed as on_gpu

    operators = torch.library.Library("fashionbert_fast", "IMPL")
    for name, launch in (("", on_gpu.launch_forward), ("_backward", on_gpu.launch_backward)):
        operators.impl(f"masked_patch_embed{name}", launch, "CPU", allow_override=True)
    for dtype in NARROW:
        ours, plain, seen = [], [], 0
        for seed in range(1000):
            tensors, keywords = _case(dtype, seed)
            if tensors["weight"].numel() > 64 * 130 or tensors["mask"].numel() > 80:
                continue  # the interpreter is slow
            exact = _run(masked_patch_embed_reference, tensors, keywords, torch.float64)
            mine = _run(masked_patch_embed, tensors, keywords)
            theirs = _run(masked_patch_embed_reference, tensors, keywords)
            assert all(x.dtype == y.dtype and x.isfinite().all() for x, y in zip(mine, theirs, strict=True)), seed
            ours.append(_errors(_same_gradients(tensors, mine, exact))[:6])
            plain.append(_errors(_same_gradients(tensors, theirs, exact))[:6])
            seen += 1
            if seen == cases_a_dtype:
                break
        worst, theirs = torch.cat(ours).amax(0), torch.cat(plain).amax(0)
        assert (worst <= 2 * theirs).all(), f"{dtype}: {worst} against {theirs}"


@pytest.mark.parametrize("new", [False, True])
def test_float32_products_are_in_tf32_where_torch_was_told_so(new):
    """By either of torch's ways; asking by the old one after setting by the new one raises."""
    from fashionbert_fast.kernels.triton.masked_patch_embed import _matmul_arguments

    weight_HD = torch.zeros(2, 2)
    assert _matmul_arguments(weight_HD)["PRECISION"] == "ieee"
    before = torch.backends.cuda.matmul.fp32_precision, torch.get_float32_matmul_precision()
    try:
        if new:
            torch.backends.cuda.matmul.fp32_precision = "tf32"
        else:
            torch.set_float32_matmul_precision("high")
        assert _matmul_arguments(weight_HD)["PRECISION"] == "tf32"
    finally:
        if new:
            torch.backends.cuda.matmul.fp32_precision = before[0]
        else:
            torch.set_float32_matmul_precision(before[1])


def test_triton_matches_in_the_interpreter():
    folders = [os.path.dirname(__file__), os.path.dirname(os.path.dirname(__file__))]
    program = f"import sys; sys.path[:0] = {folders!r}; import test_masked_patch_embed as t; "
    result = subprocess.run(
        [sys.executable, "-c", program + "t.check_triton_in_the_interpreter(10)"],
        capture_output=True,
        text=True,
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr[-3000:]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", NARROW)
def test_cuda_matches_reference(dtype):
    """The CPU's cases, on the GPU: as exact, and the same bits twice."""

    def cuda(x):
        if isinstance(x, PackedRows):
            return PackedRows(*map(cuda, x))
        return x.cuda() if isinstance(x, torch.Tensor) else x

    ours, plain = [], []
    for seed in range(100):
        tensors, keywords = _case(dtype, seed)
        exact = _run(masked_patch_embed_reference, tensors, keywords, torch.float64)
        theirs = _run(masked_patch_embed_reference, tensors, keywords)
        tensors, keywords = ({name: cuda(x) for name, x in values.items()} for values in (tensors, keywords))
        mine, again = (_run(masked_patch_embed, tensors, keywords) for _ in "12")
        assert all(torch.equal(a, b) for a, b in zip(mine, again, strict=True))
        ours.append(_errors(_same_gradients(tensors, [x.cpu() for x in mine], exact))[:6])
        plain.append(_errors(_same_gradients(tensors, theirs, exact))[:6])
    assert (torch.cat(ours).amax(0) <= 2 * torch.cat(plain).amax(0)).all()


# Bad input -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", NAMES)
def test_wrong_shapes_are_named(name):
    x = _tensors(2, 4, 12, 8, torch.Generator().manual_seed(0))
    x[name] = x[name][..., :-1]
    wrong = {"mask": "patch_mask_BP", "features": "weight_HD", "weight": "weight_HD"}.get(name, name)
    with pytest.raises(ValueError, match=wrong):
        masked_patch_embed(*x.values())


def test_wrong_dtypes_are_named():
    x = _tensors(2, 4, 12, 8, torch.Generator().manual_seed(0))
    for name, bad, wrong in (
        ("mask", x["mask"].float(), "patch_mask_BP"),
        ("position", x["position"].double(), "position_PH"),
        ("features", x["features"].double(), "features_IPD"),
        ("features", x["features"].long(), "features_IPD"),
        ("features", x["features"][0], "features_IPD"),
        ("features", x["features"].to(torch.int8), "scale_IP"),
        ("weight", x["weight"].long(), "weight_HD"),
        ("weight", x["weight"][0], "weight_HD"),
        ("segment", x["segment"].to("meta"), "segment_H"),
    ):
        with pytest.raises(ValueError, match=wrong):
            masked_patch_embed(*(x | {name: bad}).values())


@pytest.mark.parametrize(
    ("keywords", "wrong"),
    [
        ({"feature_dropout": 0.1}, "seed"),
        ({"hidden_dropout": 0.1}, "seed"),
        ({"feature_dropout": -0.1, "seed": SEED}, "feature_dropout"),
        ({"hidden_dropout": 1.1, "seed": SEED}, "hidden_dropout"),
        ({"hidden_dropout": float("nan"), "seed": SEED}, "hidden_dropout"),
        ({"seed": torch.tensor([1, 2])}, "seed"),
        ({"seed": torch.tensor([1.0])}, "seed"),
        ({"site": -1}, "site"),
        ({"site": 2**31 - 1}, "site"),
        ({"image_index_B": torch.zeros(2, dtype=torch.int32)}, "image_index_B"),
        ({"image_index_B": torch.zeros(3, dtype=torch.int64)}, "patch_mask_BP"),
        ({"scale_IP": torch.ones(2, 4)}, "scale_IP"),
    ],
)
def test_wrong_keywords_are_named(keywords, wrong):
    x = _tensors(2, 4, 12, 8, torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=wrong):
        masked_patch_embed(*x.values(), **keywords)


def test_wrong_packing_is_named():
    x = _tensors(2, 4, 12, 8, torch.Generator().manual_seed(0))
    good = PackedRows(torch.randn(2, 8), torch.tensor([0, 9]), torch.tensor([1, 5]), 10)
    masked_patch_embed(*x.values(), packed=good)
    for bad in (
        {"text_NH": torch.randn(2, 7)},
        {"text_NH": torch.randn(8)},
        {"text_NH": torch.randn(2, 8).double()},
        {"text_row_N": torch.tensor([0])},
        {"text_row_N": torch.tensor([0, 9], dtype=torch.int32)},
        {"patch_row_B": torch.tensor([1])},
    ):
        with pytest.raises(ValueError, match=next(iter(bad))):
            masked_patch_embed(*x.values(), packed=good._replace(**bad))
    with pytest.raises(ValueError, match=r"packed\.rows"):
        masked_patch_embed(*x.values(), packed=good._replace(rows=-1))
    for bad, message in (
        ({"text_row_N": torch.tensor([0, 10])}, r"text_row\[1\] is 10"),
        ({"patch_row_B": torch.tensor([-1, 5])}, r"patch_row\[0\] is -1"),
        ({"patch_row_B": torch.tensor([1, 7])}, r"patch_row\[1\] is 7"),
        ({"text_row_N": torch.tensor([0, 8])}, "row 8 of the packed sequence is given twice"),
    ):
        with pytest.raises(RuntimeError, match=message):
            masked_patch_embed(*x.values(), packed=good._replace(**bad))


@pytest.mark.parametrize("index", [-1, 2])
def test_an_image_out_of_range_is_refused(index):
    x = _tensors(2, 4, 12, 8, torch.Generator().manual_seed(0))
    with pytest.raises(RuntimeError, match=rf"image_index\[1\] is {index}"):
        masked_patch_embed(*x.values(), image_index_B=torch.tensor([0, index]))


def test_float8_e4m3_is_refused_by_name_where_the_gpu_has_none():
    with pytest.raises(ValueError, match=r"float8_e4m3fn.*sm_80"):
        check_float8((8, 0))
    check_float8((8, 9))
    check_float8((9, 0))
