"""What a FashionBERT model is made of: the BERT core, the patches, the task weighting."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path

from fashionbert_fast.errors import InputError
from fashionbert_fast.files import read_json

TASKS = ("mlm", "tia", "mpm")  # the order of every *_T tensor
CONTRASTIVE_TASK = "itc"  # which comes after them where it is one of the tasks
METHODS = ("loss", "gradient", "min_norm", "fixed", "uncertainty", "dwa", "imtl", "nash", "gradnorm")
AT_GATE = ("gradient", "min_norm", "imtl", "nash", "gradnorm")  # these solve for what scales the task gradients
NORMALISABLE, FLOORED = ("gradient", "min_norm"), ("gradient", "min_norm", "nash", "gradnorm")
LAYER_NORMS = ("fused", "apex")
ALIGNMENT_HEADS = ("cls", "pooled")
PATCH_OBJECTIVES = ("kld", "selfie")
MOST, MOST_LAYERS = 2**24, 1000  # of any other size, which no model comes near: products of two stay integers of torch
NORMALISATIONS = ("none", "norm", "loss")
OWN = "fashionbert"  # of an exported directory, which is a BERT's: the section of config.json that no BERT has


@dataclass
class TaskWeighting:
    """How the task losses become one gradient.

    ``loss``, ``gradient`` and ``min_norm`` are the specification's three ways; ``fixed`` uses ``preference`` as it is.
    The others are known from elsewhere: objectives/weighting.py says what each does, docs/training.md how they fared.
    """

    method: str = "loss"  # loss | gradient | min_norm | fixed | uncertainty | dwa | imtl | nash | gradnorm
    alpha: float = 1.0  # regulariser of the closed form (loss, gradient); alpha * 3 > 1
    detach_weights: bool = False  # loss: stop the gradient through the weights (the released code does not)
    # factor of the mlm, tia and mpm loss, before any solve; a fourth is that of a fourth task, where there is one
    preference: list[float] = field(default_factory=lambda: [1.0, 1.0, 1.0])
    normalise: str = "none"  # gradient, min_norm: divide each task gradient by its norm or its loss before the solve
    floor: float = 0.0  # gradient, min_norm, nash, gradnorm: no weight below this; at most 1/3
    window: int = 100  # dwa: micro-batches whose mean losses are compared with those of as many before
    temperature: float = 2.0  # dwa: the larger, the more alike the weights
    asymmetry: float = 1.5  # gradnorm: by how much a task that lags behind is pulled up; 0: gradients of equal norm

    def __post_init__(self) -> None:
        self.preference = [float(p) for p in self.preference]
        if self.method not in METHODS:
            raise ValueError(f"weighting.method must be one of {', '.join(METHODS)}, got {self.method!r}")
        if self.normalise not in NORMALISATIONS:
            raise ValueError(f"weighting.normalise must be one of {', '.join(NORMALISATIONS)}, got {self.normalise!r}")
        if not 1 < self.alpha * len(TASKS) < math.inf:
            raise ValueError(f"weighting.alpha must exceed 1/3, got {self.alpha}")
        factors = self.preference
        if len(factors) not in (3, 4) or not min(factors) >= 0 or not 0 < sum(factors) < math.inf:
            raise ValueError(
                f"weighting.preference must be three factors >= 0 (four of four tasks), not all 0, got {factors}"
            )
        if not 0 <= self.floor <= 1 / 3:
            raise ValueError(f"weighting.floor must lie in [0, 1/3], got {self.floor}")
        if self.normalise != "none" and self.method not in NORMALISABLE:
            raise ValueError(f"weighting.normalise needs method {' or '.join(NORMALISABLE)}, not {self.method}")
        if self.floor and self.method not in FLOORED:
            raise ValueError(f"weighting.floor needs method {', '.join(FLOORED)}, not {self.method}")
        if self.window < 1:
            raise ValueError(f"weighting.window must be 1 or more, got {self.window}")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"weighting.temperature must exceed 0, got {self.temperature}")
        if not 0 <= self.asymmetry < math.inf:
            raise ValueError(f"weighting.asymmetry must be 0 or more, got {self.asymmetry}")


@dataclass
class QueryLoss:
    """The fourth loss: a query is to find its item among those of a micro-batch of all ranks, by AM-softmax."""

    weight: float = 0.0  # factor of the loss, which is added to the three tasks'; 0: no queries
    scale: float = 20.0  # what cosines are multiplied by
    margin: float = 0.1  # by how much the right item's cosine must exceed the others'

    def __post_init__(self) -> None:
        for name, least in (("weight", 0.0), ("scale", 1e-6), ("margin", 0.0)):
            if not least <= getattr(self, name) < math.inf:
                raise ValueError(f"queries.{name} must be {least:g} or more, got {getattr(self, name)}")
        if self.margin > 2:
            raise ValueError(f"queries.margin must be at most 2, no two cosines being further apart, got {self.margin}")


@dataclass
class FashionBertConfig:
    """Sizes and rates. Field names of the core are those of ``transformers.BertConfig``.

    >>> FashionBertConfig(hidden_size=128, num_attention_heads=2).patches
    64
    """

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"  # gelu (exact), gelu_new, relu
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2  # segment 0: text "T", 1: image "I", 2 where there are three: query "Q"
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    pad_token_id: int = 0
    patches: int = 64  # an 8 x 8 grid
    patch_feature_size: int = 2048  # ResNet-50's pooled feature
    patch_dropout_prob: float = 0.1  # on the raw feature, before the projection
    layer_norm: str = "fused"  # of the encoder: fused (with bias, dropout and residual, one operator) | apex; not saved
    alignment_head: str = "cls"  # what the alignment head reads: cls ([CLS]) | pooled (and the means of both sides)
    patch_objective: str = "kld"  # of masked patches: kld (their distribution) | selfie (which of them was where)
    contrastive_size: int = 0  # numbers of a vector that the contrastive loss has learned; 0: no projection
    standardise_features: bool = False  # it began with them standardised; the contrastive head's tower reads them so
    contrastive_dropout_prob: float = 0.5  # within the towers of its head
    contrastive_weight: float = 0.0  # its factor as a fourth task; 0: it is none
    weighting: TaskWeighting = field(default_factory=TaskWeighting)

    def __post_init__(self) -> None:
        if isinstance(self.weighting, dict):
            self.weighting = TaskWeighting(**self.weighting)
        if not isinstance(self.weighting, TaskWeighting):
            raise ValueError(f"weighting must be an object of fields, got {self.weighting!r:.80}")
        for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
                     "max_position_embeddings", "type_vocab_size", "patches", "patch_feature_size"):  # fmt: skip
            value, most = getattr(self, name), MOST_LAYERS if name == "num_hidden_layers" else MOST
            if type(value) is not int or not 1 <= value <= most:
                raise ValueError(f"model.{name} must be an integer from 1 to {most:,}, got {value!r:.80}")
        if type(self.pad_token_id) is not int or not 0 <= self.pad_token_id < self.vocab_size:
            raise ValueError(
                f"model.pad_token_id must be a token, 0 to {self.vocab_size - 1}, got {self.pad_token_id!r:.80}"
            )
        for name in ("layer_norm_eps", "initializer_range"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"model.{name} must be a number of 0 or more, got {getattr(self, name)}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"model.hidden_size {self.hidden_size} is not a multiple of model.num_attention_heads "
                f"{self.num_attention_heads}"
            )
        if self.hidden_act not in ("gelu", "gelu_new", "relu"):
            raise ValueError(f"model.hidden_act must be gelu, gelu_new or relu, got {self.hidden_act!r:.80}")
        if self.layer_norm not in LAYER_NORMS:
            raise ValueError(f"model.layer_norm must be one of {', '.join(LAYER_NORMS)}, got {self.layer_norm!r}")
        if self.alignment_head not in ALIGNMENT_HEADS:
            raise ValueError(f"model.alignment_head must be one of {', '.join(ALIGNMENT_HEADS)}, got "
                             f"{self.alignment_head!r:.80}")  # fmt: skip
        if self.patch_objective not in PATCH_OBJECTIVES:
            raise ValueError(f"model.patch_objective must be one of {', '.join(PATCH_OBJECTIVES)}, got "
                             f"{self.patch_objective!r:.80}")  # fmt: skip
        size = self.contrastive_size
        if type(size) is not int or not 0 <= size <= MOST or size % 2:
            raise ValueError(f"contrastive_size must be an even integer from 0 to {MOST:,}, got {size!r:.80}")
        if not 0 <= self.contrastive_weight < math.inf or (self.contrastive_weight and not self.contrastive_size):
            raise ValueError(f"contrastive_weight must be 0 or more, and 0 without contrastive_size, got "
                             f"{self.contrastive_weight!r:.80}")  # fmt: skip
        if self.type_vocab_size < 2:
            raise ValueError("model.type_vocab_size must be at least 2: one segment for text, one for images")
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "patch_dropout_prob",
                     "contrastive_dropout_prob"):  # fmt: skip
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"model.{name} must lie in [0, 1), got {getattr(self, name)}")

    @property
    def core_weights(self) -> int:
        """How many numbers the tables and matrices of the core hold: nearly all that there are."""
        rows = self.vocab_size + self.max_position_embeddings + self.type_vocab_size
        rows += self.patches + self.patch_feature_size
        layer = 4 * self.hidden_size + 2 * self.intermediate_size
        return self.hidden_size * (rows + self.num_hidden_layers * layer)

    def to_json(self) -> str:
        """config.json, with the model type Hugging Face tools look for."""
        fields = dataclasses.asdict(self)
        del fields["layer_norm"]  # by whom the model was computed, not what it is: it loads where apex is not
        return json.dumps({"model_type": "fashionbert", **fields}, indent=2) + "\n"

    @classmethod
    def from_json(cls, path: Path) -> FashionBertConfig:
        """Read config.json, of `save_pretrained` or of an export; InputError naming the file where it is neither."""
        raw = read_json(path, "give a directory save_pretrained wrote")
        kind, own = raw.pop("model_type", None), raw.pop(OWN, None)
        if kind == "bert" and isinstance(own, dict):
            known = {field.name for field in dataclasses.fields(cls)}
            raw = {name: value for name, value in raw.items() if name in known} | own
        elif kind != "fashionbert":
            raise InputError(f"{path}: model_type is not fashionbert; give a directory save_pretrained wrote")
        try:
            return cls(**raw)
        except (TypeError, ValueError) as error:
            raise InputError(f"{path}: {error}") from error
