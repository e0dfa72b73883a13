"""A directory laid out as google-bert/bert-base-uncased publishes it, with random weights of any size."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from fashionbert_fast.model.directories import resolve_core

# The published config.json; what only names a version of transformers is left out.
BASE = {
    "architectures": ["BertForMaskedLM"], "attention_probs_dropout_prob": 0.1, "gradient_checkpointing": False,
    "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "hidden_size": 768, "initializer_range": 0.02,
    "intermediate_size": 3072, "layer_norm_eps": 1e-12, "max_position_embeddings": 512, "model_type": "bert",
    "num_attention_heads": 12, "num_hidden_layers": 12, "pad_token_id": 0, "position_embedding_type": "absolute",
    "type_vocab_size": 2, "use_cache": True, "vocab_size": 30522,
}  # fmt: skip
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def tokenizer_files(directory: Path, **tokenizer_config) -> Path:
    """vocab.txt, tokenizer.json and a tokenizer_config.json of two fields: BERT's own vocabulary of 30,522 pieces."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in ("vocab.txt", "tokenizer.json"):
        shutil.copy(resolve_core("all-minilm-l6-v2") / name, directory / name)
    fields = tokenizer_config or {"do_lower_case": True, "model_max_length": 512}
    (directory / "tokenizer_config.json").write_text(json.dumps(fields))
    return directory


def bert_directory(directory: Path, seed: int = 0, **sizes) -> Path:
    """config.json, model.safetensors with the published names, and `tokenizer_files`."""
    config = BASE | sizes
    H, F = config["hidden_size"], config["intermediate_size"]
    linear = {"attention.self.query": (H, H), "attention.self.key": (H, H), "attention.self.value": (H, H),
              "attention.output.dense": (H, H), "intermediate.dense": (F, H), "output.dense": (H, F)}  # fmt: skip
    layers = [f"bert.encoder.layer.{i}." for i in range(config["num_hidden_layers"])]
    linear = {layer + name: shape for layer in layers for name, shape in linear.items()}
    linear |= {"bert.pooler.dense": (H, H), "cls.predictions.transform.dense": (H, H), "cls.seq_relationship": (2, H)}
    norms = ["bert.embeddings.", "cls.predictions.transform."]
    norms += [layer + half for layer in layers for half in ("attention.output.", "output.")]
    tables = {"word": config["vocab_size"], "position": config["max_position_embeddings"], "token_type": 2}
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * config["initializer_range"]

    tensors = {f"bert.embeddings.{name}_embeddings.weight": normal(rows, H) for name, rows in tables.items()}
    for name, shape in linear.items():
        tensors |= {f"{name}.weight": normal(*shape), f"{name}.bias": normal(shape[0])}
    for name in norms:  # the published file still calls them gamma and beta
        tensors |= {f"{name}LayerNorm.gamma": 1 + normal(H), f"{name}LayerNorm.beta": normal(H)}
    tensors["cls.predictions.bias"] = normal(config["vocab_size"])
    tokenizer_files(directory)
    (directory / "config.json").write_text(json.dumps(config))
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory
