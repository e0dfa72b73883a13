"""The model card of an exported directory: README.md with the fields that the Hugging Face hub reads.

It tells what the checkpoint and its feature manifest say and no more: what is not known is left out. Of paths it gives
the last part, since a card is made to be published.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData, try_to_load_from_cache

from fashionbert_fast import __version__
from fashionbert_fast.config import Config
from fashionbert_fast.errors import InputError
from fashionbert_fast.features.manifest import Manifest
from fashionbert_fast.files import read_json
from fashionbert_fast.model.config import FashionBertConfig

HUB_NAMES = {"all-minilm-l6-v2": "sentence-transformers/all-MiniLM-L6-v2"}  # of cores that packages carry
DIRECTIONS = {"text_to_image": "Text to image", "image_to_text": "Image to text"}
EVALUATE = "write one with `fashionbert evaluate --json`"


@dataclass
class Facts:
    """What a card tells. None, "" and empty: not known."""

    name: str
    model: FashionBertConfig
    manifest: Manifest | None = None  # of the patch features that the model knows
    run: Config | None = None
    step: int | None = None
    evaluation: Mapping[str, Any] = field(default_factory=dict)  # what `fashionbert evaluate --json` wrote
    license: str | None = None
    base_model: str | None = None  # a hub id
    max_text_tokens: int = 0
    graphs: list[str] = field(default_factory=list)  # of ONNX


def card(facts: Facts) -> str:
    """README.md: YAML between two rules, then Markdown."""
    results = _results(facts)
    tags = ["fashionbert", "bert", "transformers", "product-search", "image-text-matching"]
    data = ModelCardData(
        license=facts.license,
        library_name="fashionbert_fast",
        pipeline_tag="feature-extraction",
        tags=tags + (["onnx"] if facts.graphs else []),
        base_model=facts.base_model or _hub_name(facts.run),
        model_name=facts.name if results else None,
        eval_results=results or None,
    )
    c = facts.model
    parts = [
        f"# {_plain(facts.name)}",
        "[FashionBERT](https://arxiv.org/abs/2005.09801), which reads product titles and product photos: one BERT of "
        f"{c.num_hidden_layers} layers of {c.hidden_size}, photos as {c.patches} patches of {c.patch_feature_size} "
        f"numbers. Exported by fashionbert_fast {__version__}.",
        _section("Use", _use(facts)),
        _section("Data", _data(facts.manifest)),
        _section("Training", _training(facts)),
        _section("Figures", _figures(facts.evaluation)),
        _section("Licence", f"`{facts.license}`" if facts.license else "Not stated by who exported it."),
    ]
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(part for part in parts if part) + "\n"


def read_evaluation(path: Path, checkpoint: Path) -> dict[str, Any]:
    """What `fashionbert evaluate --json` wrote, of the model directory ``checkpoint``.

    Raises:
        InputError: it is something else, or of another step of the run.
    """
    value = read_json(path, EVALUATE)
    for name in ("protocol", "queries", "candidates", "alignment_accuracy", *DIRECTIONS):
        if name not in value:
            raise InputError(f"{path}: has no {name}, so it is no evaluation; {EVALUATE}")
    figures = [value["alignment_accuracy"]]
    for direction in DIRECTIONS:
        recalls = value[direction]
        figures += list(recalls.values()) if isinstance(recalls, dict) else [None]
    if not all(isinstance(figure, (int, float)) and 0 <= figure <= 1 for figure in figures):
        raise InputError(f"{path}: its figures are no fractions; {EVALUATE}")
    of, step = Path(str(value.get("checkpoint", ""))).parent.name, checkpoint.resolve().parent.name
    if of.startswith("step-") and step.startswith("step-") and of != step:
        raise InputError(f"{path}: its figures are of {of}, the export is of {step}; evaluate that, or give {of} as "
                         "--checkpoint")  # fmt: skip
    return value


def _hub_name(run: Config | None) -> str | None:
    """Of the core that training began from, where it is one of the hub for certain: a path may look like an id."""
    core = run.model.core if run else None
    if core is None or core in HUB_NAMES or Path(core).exists():
        return HUB_NAMES.get(core or "")
    is_id = core.count("/") == 1 and not core.startswith((".", "/", "~"))
    return core if is_id and isinstance(try_to_load_from_cache(core, "config.json"), str) else None


def _results(facts: Facts) -> list[EvalResult]:
    e = facts.evaluation
    if not e:
        return []
    of: dict[str, Any] = {
        "task_type": "image-text-retrieval",
        "task_name": f"Titles and photos of products, protocol {e['protocol']}, {e['candidates']} candidates"
        + _by_score(e),
        "dataset_type": "product-catalogue",
        "dataset_name": (facts.manifest.source if facts.manifest else "") or "a product catalogue",
        "dataset_split": e.get("split"),
    }
    accuracy = EvalResult(**of, metric_type="accuracy", metric_name="Alignment accuracy",
                          metric_value=round(e["alignment_accuracy"], 6))  # fmt: skip
    return [accuracy] + [
        EvalResult(**of, metric_type="recall", metric_name=f"{title} {name}", metric_value=round(value, 6))
        for direction, title in DIRECTIONS.items()
        for name, value in e[direction].items()
    ]


def _section(title: str, text: str) -> str:
    return f"## {title}\n{text}" if text else ""


def _use(facts: Facts) -> str:
    name = _plain(facts.name)
    text = f"""The BERT alone, for text. Transformers passes over the tensors of photos, which it calls unexpected:

```python
from transformers import AutoModel, AutoTokenizer

model, tokenizer = (c.from_pretrained("{name}") for c in (AutoModel, AutoTokenizer))
model(**tokenizer("red shirt", return_tensors="pt")).last_hidden_state
```"""
    if facts.manifest:
        text += f"""

The whole model, with the patch encoder that its processor loads:

```python
from fashionbert_fast import FashionBertForPreTraining, FashionBertProcessor

model, processor = (c.from_pretrained("{name}") for c in (FashionBertForPreTraining, FashionBertProcessor))
model.score(**processor("red shirt", "photo.jpg"))  # how probable it is that they belong together
```"""
    if facts.graphs:
        graphs = ", ".join(f"`{graph}.onnx`" for graph in facts.graphs)
        text += f"\n\nIn `onnx/`: {graphs}. `onnx.json` says what they take, and how far they are from the model."
    if facts.max_text_tokens:
        text += f"\n\nTitles were cut at {facts.max_text_tokens} tokens."
    return text


def _data(m: Manifest | None) -> str:
    if m is None:
        return "It is not known which patch features the model was trained on."
    splits = ", ".join(f"{count:,} {name or 'of no split'}" for name, count in m.splits.items())
    resize, encoder = m.resize, m.encoder
    rows = {
        "catalogue": m.source,
        "products": f"{m.products:,}" + (f" ({splits})" if splits else ""),
        "photos": f"of {resize['image_pixels']} x {resize['image_pixels']} pixels, cut into {m.grid} x {m.grid} "
        f"patches, each scaled to {resize['patch_pixels']} x {resize['patch_pixels']}",
        "patch encoder": f"{_last(encoder['name'])}, {encoder['architecture']}, {m.feature_size} numbers a patch",
        "weights of the encoder": f"SHA-256 {encoder['weights_sha256']}",
        "fingerprint of the features": m.fingerprint,
    }
    return _table(rows)


def _training(facts: Facts) -> str:
    run = facts.run
    if run is None:
        return ""
    t, w = run.train, run.weighting
    rows = {
        "began from": _last(run.model.core) if run.model.core else "no checkpoint: sizes and vocabulary of its own",
        "optimizer steps": f"{t.steps:,}" if facts.step is None else f"{facts.step:,} of {t.steps:,}",
        "pairs a step and process": f"{t.micro_batch_size * t.gradient_accumulation_steps:,}",
        "optimizer": f"{t.optimizer}, learning rate {t.lr:g}, {t.schedule}, weight decay {t.weight_decay:g}",
        "precision": t.precision,
        "tasks": f"masked words, alignment of title and photo, masked patches; weighted by {w.method}",
        "seed": str(t.seed),
    }
    return _table(rows)


def _by_score(e: Mapping[str, Any]) -> str:
    """What was ranked by, where it is not the probability of a match."""
    return "" if (score := e.get("score", "match")) == "match" else f", by {score}"


def _figures(e: Mapping[str, Any]) -> str:
    if not e:
        return ""
    names = list(e["text_to_image"])
    lines = ["| | " + " | ".join(map(_plain, names)) + " |", "| --- |" + " --- |" * len(names)]
    for direction, title in DIRECTIONS.items():
        lines.append(f"| {title} | " + " | ".join(f"{e[direction].get(name, 0):.4f}" for name in names) + " |")
    split = f", split {_plain(e['split'])}" if "split" in e else ""
    return (
        "\n".join(lines)
        + f"\n\nProtocol {_plain(e['protocol'])}{split}: {e['queries']} queries, {e['candidates']} candidates each"
        + f"{_plain(_by_score(e))}. "
        + f"Alignment accuracy {e['alignment_accuracy']:.4f}, by chance 0.5."
    )


def _table(rows: Mapping[str, str]) -> str:
    return "| | |\n| --- | --- |\n" + "\n".join(f"| {name} | {_plain(value)} |" for name, value in rows.items())


def _last(path: str) -> str:
    """A hub id as it is; of a path its last part."""
    return Path(path).name if path.startswith(("/", ".", "~")) else path


def _plain(text: object) -> str:
    """On one line, without what Markdown and HTML would read as theirs."""
    return " ".join(str(text).translate(dict.fromkeys(map(ord, '|`<>[]"\\'))).split())
