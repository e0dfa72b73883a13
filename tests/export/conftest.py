"""What `export` writes of the shop's run, and of a model with a segment for queries in bfloat16, with every graph."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from fashionbert_fast import FashionBertForPreTraining, FashionBertProcessor
from fashionbert_fast.export.bert import Options, export


@pytest.fixture(scope="session")
def exported(shop, tmp_path_factory) -> Path:
    """Of the run, without graphs."""
    out = tmp_path_factory.mktemp("export") / "shop-model"
    export(shop / "runs" / "shop", out, Options(license="apache-2.0"))
    return out


@pytest.fixture(scope="session")
def query_model(shop, tmp_path_factory) -> Path:
    """A model directory: three segments, bfloat16."""
    source, directory = shop / "runs" / "shop", tmp_path_factory.mktemp("query") / "model"
    two = FashionBertForPreTraining.from_pretrained(source)
    torch.manual_seed(1)
    model = FashionBertForPreTraining(dataclasses.replace(two.config, type_vocab_size=3))
    for parameter in model.parameters():
        if parameter.dim() == 1:  # biases and LayerNorms, none of which may be left out
            torch.nn.init.normal_(parameter.data, mean=parameter.data.mean().item(), std=0.3)
    model.bfloat16().save_pretrained(directory)
    FashionBertProcessor.from_pretrained(source).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def graphs(query_model, tmp_path_factory) -> Path:
    """All graphs of it, checked as they were written."""
    out = tmp_path_factory.mktemp("graphs") / "out"
    export(query_model, out, Options(graphs=[]))
    return out
