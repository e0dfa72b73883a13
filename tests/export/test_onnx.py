"""The graphs, run in onnxruntime: the model's own numbers for every shape, and a check that sees what is wrong."""

from __future__ import annotations

import functools
import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F

from fashionbert_fast import FashionBertConfig, FashionBertForPreTraining
from fashionbert_fast.cli import main
from fashionbert_fast.export import check, padded
from fashionbert_fast.export import onnx as module
from fashionbert_fast.export.onnx import GRAPHS
from fashionbert_fast.features.prepare import prepare
from fashionbert_fast.run_directory import sha256

POSITIONS = 16  # of the shop's model


@pytest.fixture(scope="module")
def model(query_model) -> FashionBertForPreTraining:
    return FashionBertForPreTraining.from_pretrained(query_model).float()


def _run(path: Path, inputs: dict[str, torch.Tensor]) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {i.name: inputs[i.name].numpy() for i in session.get_inputs()})[0]


def _inputs(B: int, L: int, lengths: list[int] | None = None) -> dict[str, torch.Tensor]:
    """Titles of those lengths, each of L if None, padded by tokens like any other."""
    generator = torch.Generator().manual_seed(B * 100 + L)
    return {
        "input_ids": torch.randint(0, 100, (B, L), generator=generator),
        "attention_mask": (torch.arange(L) < torch.tensor(lengths or [L] * B)[:, None]).long(),
        "patch_features": torch.randn(B, 4, 16, generator=generator),
    }


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize(
    "inputs",
    [
        _inputs(1, 1),
        _inputs(1, POSITIONS),  # the longest that the model takes
        _inputs(300, 5),  # many more than were traced
        _inputs(4, 9, [1, 9, 3, 2]),
        {name: tensor.flip(1) if name != "patch_features" else tensor  # padded on the left
         for name, tensor in _inputs(3, 7, [7, 1, 4]).items()},
    ],
    ids=lambda inputs: "x".join(map(str, inputs["input_ids"].shape)),
)  # fmt: skip
@torch.inference_mode()
def test_a_graph_gives_what_the_model_gives(graphs, model, name, inputs):
    expected = GRAPHS[name].expected(model, inputs)
    found = torch.from_numpy(_run(graphs / "onnx" / f"{name}.onnx", inputs))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    if name != "scorer":
        torch.testing.assert_close(found.norm(dim=1), torch.ones(len(found)))


@torch.inference_mode()
def test_the_graphs_differ_in_what_they_read(graphs, model):
    """Or that each agrees with what it should be says little."""
    inputs = _inputs(6, 8, [8, 1, 2, 5, 8, 3])
    found = {name: _run(graphs / "onnx" / f"{name}.onnx", inputs) for name in GRAPHS if name != "scorer"}
    names = list(found)
    for a in range(len(names)):
        for b in range(a):
            assert np.abs(found[names[a]] - found[names[b]]).max() > 0.1, (names[a], names[b])
    assert _run(graphs / "onnx" / "scorer.onnx", inputs).std() > 0.05


@pytest.mark.parametrize("name", ["scorer", "image_vectors", "pair_vectors"])
def test_other_sizes_are_refused_by_the_runtime(graphs, name):
    inputs = _inputs(2, 3)
    for features_BPD in (inputs["patch_features"][:, :3], inputs["patch_features"][..., :8]):
        with pytest.raises(Exception, match="patch_features"):
            _run(graphs / "onnx" / f"{name}.onnx", inputs | {"patch_features": features_BPD.contiguous()})


def test_what_the_files_say_of_themselves(graphs):
    report = json.loads((graphs / "onnx" / "onnx.json").read_text())
    fingerprint = json.loads((graphs / "patch_features.json").read_text())["fingerprint"]
    assert list(report["graphs"]) == list(GRAPHS)
    assert report["pairs"] == sum(pairs for pairs, _ in report["batches"]) == 100
    assert min(report["batches"]) == [1, 1] and max(tokens for _, tokens in report["batches"]) == 6
    assert report["versions"]["onnxruntime"] == onnxruntime.__version__
    for name, said in report["graphs"].items():
        path = graphs / "onnx" / f"{name}.onnx"
        assert said["files"] == {path.name: sha256(path)}  # no data beside it
        assert 0 < said["largest_difference"] <= report["tolerance"] == check.TOLERANCE
        meta = onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map
        assert meta == report["metadata"]
        assert (meta["model"], meta["max_text_tokens"], meta["features_fingerprint"]) == ("out", "6", fingerprint)
        graph = onnx.load(path)
        onnx.checker.check_model(graph, full_check=True)
        assert {domain.domain: domain.version for domain in graph.opset_import} == {"": report["opset"]}
        assert [i.name for i in graph.graph.input] == said["inputs"]
        assert [o.name for o in graph.graph.output] == [said["output"]]
        assert b"/" + b"export/padded.py" not in path.read_bytes() and b"stack_trace" not in path.read_bytes()


# What the check sees -------------------------------------------------------------------------------------------------
def _weights(graph: onnx.ModelProto, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    (tensor,) = [tensor for tensor in graph.graph.initializer if tensor.name == name]
    value = change(onnx.numpy_helper.to_array(tensor).copy())
    tensor.CopyFrom(onnx.numpy_helper.from_array(value.astype(np.float32), name))


def _attributes(graph: onnx.ModelProto, operator: str, **values) -> None:
    nodes = [node for node in graph.graph.node if node.op_type == operator]
    assert nodes
    for node in nodes:
        kept = [attribute for attribute in node.attribute if attribute.name not in values]
        del node.attribute[:]
        node.attribute.extend([*kept, *(onnx.helper.make_attribute(name, value) for name, value in values.items())])


def _one_number(value: np.ndarray) -> np.ndarray:
    value.flat[3] += 0.01
    return value


def _padding_is_attended(graph: onnx.ModelProto) -> None:
    """Every Where keeps the scores that it has, whatever the mask says."""
    (where, *others) = [node for node in graph.graph.node if node.op_type == "Where"]
    for node in (where, *others):
        node.input[1] = node.input[2]


def _padding_is_pooled(graph: onnx.ModelProto) -> None:
    """The product of mask and hidden states, before the sum, is the hidden states."""
    (product,) = [node for node in graph.graph.node if node.op_type == "Mul"]
    product.op_type, mask = "Add", product.input[1]
    zero = onnx.numpy_helper.from_array(np.zeros(1, np.float32), "zero")
    graph.graph.initializer.append(zero)
    product.input[list(product.input).index(mask)] = "zero"


def _a_layer_is_missing(graph: onnx.ModelProto) -> None:
    """What follows the last LayerNorm reads the first layer's."""
    norms = [node for node in graph.graph.node if node.op_type == "LayerNormalization"]
    for node in graph.graph.node:
        for place, name in enumerate(node.input):
            if name == norms[-1].output[0]:
                node.input[place] = norms[-3].output[0]


FAULTS = {
    "one-number-of-a-weight": ("scorer", lambda g: _weights(g, "encoder.layers.1.attention_output.bias", _one_number)),
    "places-from-1": (
        "text_vectors",
        lambda g: _weights(g, "text.position.weight", lambda value: np.roll(value, -1, 0)),
    ),
    "patches-in-another-order": (
        "image_vectors",
        lambda g: _weights(g, "patches.position.weight", lambda value: value[..., ::-1, :]),
    ),
    "gelu-by-tanh": ("pair_vectors", lambda g: _attributes(g, "Gelu", approximate="tanh")),
    "another-epsilon": ("image_vectors", lambda g: _attributes(g, "LayerNormalization", epsilon=1e-3)),
    "padding-is-attended": ("text_vectors", _padding_is_attended),
    "padding-is-pooled": ("text_vectors", _padding_is_pooled),
    "a-layer-is-missing": ("pair_vectors", _a_layer_is_missing),
    "not-a-number": ("scorer", lambda g: _weights(g, "head.classifier.bias", lambda value: value * np.nan)),
}


@pytest.fixture(scope="module")
def drawn(model) -> list[module.Inputs]:
    return check.batches(check.drawn_pairs(model.config, 6), model.config.vocab_size)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_a_graph_is_found(graphs, model, drawn, tmp_path, fault):
    name, spoil = FAULTS[fault]
    graph = onnx.load(graphs / "onnx" / f"{name}.onnx")
    onnx.save(graph, tmp_path / "same.onnx")
    assert check.largest_difference(model, name, tmp_path / "same.onnx", drawn) <= check.TOLERANCE
    spoil(graph)
    onnx.save(graph, tmp_path / "spoilt.onnx")
    with pytest.raises(check.ResultsDiffer, match=r"spoilt\.onnx: differs from the model by .* in onnxruntime"):
        check.largest_difference(model, name, tmp_path / "spoilt.onnx", drawn)


def test_another_graph_or_none_is_found(graphs, model, drawn, tmp_path):
    with pytest.raises(check.ResultsDiffer, match="differs"):  # titles' segment for queries'
        check.largest_difference(model, "query_vectors", graphs / "onnx" / "text_vectors.onnx", drawn)
    path = graphs / "onnx" / "scorer.onnx"
    (tmp_path / "cut.onnx").write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(check.ResultsDiffer, match=r"cut\.onnx: cannot be run in onnxruntime") as raised:
        check.largest_difference(model, "scorer", tmp_path / "cut.onnx", drawn)
    assert "\n" not in str(raised.value)


# The command ---------------------------------------------------------------------------------------------------------
def test_a_graph_that_differs_is_not_written(shop, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(padded.ACTIVATIONS, "gelu", functools.partial(F.gelu, approximate="tanh"))
    out = tmp_path / "new" / "out"
    words = ["--checkpoint", str(shop / "runs" / "shop"), "--out", str(out), "--onnx", "image_vectors"]
    assert main(["export", *words]) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("fashionbert export: error: image_vectors.onnx: differs from the model by")
    assert said.endswith("nothing was written")
    assert not any((tmp_path / "new").iterdir())


def test_on_a_stores_own_pairs(shop, tmp_path, capsys, monkeypatch):
    """And of a graph that is too large for one file."""
    monkeypatch.setattr("torch.onnx._internal.exporter._onnx_program._LARGE_MODEL_THRESHOLD", 1000)  # bytes, of 2 GB
    out = tmp_path / "out"
    words = ["--checkpoint", str(shop / "runs" / "shop"), "--out", str(out), "--onnx", "image_vectors"]
    assert main(["export", *words, "--data", str(shop / "stores" / "shop")]) == 0
    assert "image_vectors.onnx" in capsys.readouterr().out
    report = json.loads((out / "onnx" / "onnx.json").read_text())
    assert list(report["graphs"]) == ["image_vectors"] and report["pairs"] == 100
    files = report["graphs"]["image_vectors"]["files"]
    assert files == {name: sha256(out / "onnx" / name) for name in ("image_vectors.onnx", "image_vectors.onnx.data")}
    assert _run(out / "onnx" / "image_vectors.onnx", _inputs(3, 1)).shape == (3, 16)  # which looks beside itself
    assert "`image_vectors.onnx`" in (out / "README.md").read_text()
    assert "- onnx\n" in (out / "README.md").read_text()


def test_what_cannot_be_asked_for_is_a_line(shop, tmp_path, capsys, monkeypatch):
    def refused(*words: str) -> str:
        base = ["--checkpoint", str(shop / "runs" / "shop"), "--out", str(tmp_path / "out"), "--onnx"]
        assert main(["export", *base, *words]) == 2
        assert not (tmp_path / "out").exists()
        return capsys.readouterr().err

    assert "--onnx query_vectors: the model has no segment for queries" in refused("query_vectors")
    assert "--onnx vectors: no such graph; give some of scorer, text_vectors" in refused("vectors")
    assert "no such feature store" in refused("--data", str(tmp_path / "nowhere"))
    prepare(shop / "shop.csv", tmp_path / "other", encoder="random:1:16", grid=2, patch_pixels=8,
            columns={"image": "photo"}, device="cpu")  # fmt: skip
    assert "their patch features differ in encoder.weights_sha256" in refused("--data", str(tmp_path / "other"))
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name))
    assert "--onnx: package onnxscript is not installed; pip install 'fashionbert_fast[onnx]'" in refused()


def test_the_page_runs(graphs, shop, tmp_path, monkeypatch):
    """The blocks of docs/export.md, one after another, on what was exported."""
    for name, target in {"exported": graphs, "photos": shop / "photos"}.items():
        (tmp_path / name).symlink_to(target)
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parent.parent.parent / "docs" / "export.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 4 and max(block.count("\n") for block in blocks) <= 7
    scope: dict = {}
    for block in blocks:
        exec(block, scope)
    assert scope["hidden"].shape == (2, 4, 16)
    np.testing.assert_allclose(scope["scores"], scope["probability"].numpy(), atol=0.02)  # of a model in bfloat16
    ids = torch.from_numpy(scope["ids"])
    assert torch.equal(ids, scope["inputs"]["input_ids"][:1])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.inference_mode():
        expected = GRAPHS["text_vectors"].expected(scope["model"].float(), inputs)
    np.testing.assert_allclose(scope["vectors"], expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("activation", ["gelu_new", "relu"])
@torch.inference_mode()
def test_other_activations(activation):
    """And one head: what is traced, without the trace."""
    torch.manual_seed(0)
    config = FashionBertConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=1, num_attention_heads=1, intermediate_size=32,
        max_position_embeddings=9, patches=4, patch_feature_size=6, initializer_range=0.5, hidden_act=activation,
    )  # fmt: skip
    model = FashionBertForPreTraining(config).eval()
    batch = check.batches(check.drawn_pairs(config, 8), 60)[-1]
    for name in module.graphs_of(model, []):
        graph = GRAPHS[name]
        found = graph.padded(model)(**{name: batch[name] for name in graph.inputs})
        torch.testing.assert_close(found, graph.expected(model, batch), atol=1e-5, rtol=0)
