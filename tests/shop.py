"""A small shop as a user has it after `prepare` and `pretrain`: shop.csv, photos/, stores/shop and runs/shop.

The run was never trained: its model is random, with weights large enough to tell pairs apart.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fashionbert_fast import FashionBertConfig, FashionBertForPreTraining
from fashionbert_fast.data.tokenizer import train_wordpiece
from fashionbert_fast.features.prepare import prepare
from fashionbert_fast.features.store import FeatureStore
from fashionbert_fast.files import seal
from fashionbert_fast.run_directory import sha256

COLOURS = {"red": (200, 30, 30), "blue": (30, 30, 200), "green": (30, 150, 60), "black": (20, 20, 20)}
GARMENTS = ("shirt", "long summer dress", "boots")
ENCODER, GRID, PATCH_PIXELS, MAX_TEXT_TOKENS = "random:0:16", 2, 8, 6  # of 6 tokens only the longest titles are cut


def write_catalogue(folder: Path) -> None:
    """Twelve products in shop.csv (id, title, category, photo), a noisy photo of each title's colour in photos/."""
    (folder / "photos").mkdir(parents=True)
    generator = np.random.default_rng(0)
    with (folder / "shop.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "title", "category", "photo"])
        products = [(colour, garment) for garment in GARMENTS for colour in COLOURS]
        for number, (colour, garment) in enumerate(products, start=1001):
            photo = f"photos/{number}.jpg"
            noise = generator.integers(-20, 20, (40, 30, 3))
            pixels = np.clip(np.asarray(COLOURS[colour]) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / photo)
            writer.writerow([number, f"{colour} {garment}", garment, photo])


def write_run(run: Path, store: FeatureStore) -> Path:
    """A run of one checkpoint; returns its model directory."""
    checkpoint = run / "checkpoints" / "step-00000001"
    train_wordpiece(store.titles, 100, checkpoint / "model")
    torch.manual_seed(0)
    config = FashionBertConfig(
        vocab_size=100, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=16, patches=GRID**2, patch_feature_size=store.manifest.feature_size,
        initializer_range=0.5,
    )  # fmt: skip
    model = FashionBertForPreTraining(config)
    model.feature_manifest = store.manifest.to_dict()
    model.save_pretrained(checkpoint / "model")
    (checkpoint / "config.yaml").write_text(
        f"data:\n  store: stores/shop\n  max_text_tokens: {MAX_TEXT_TOKENS}\ntrain:\n  output: runs/shop\n"
    )
    (checkpoint / "state").mkdir()
    (checkpoint / "state" / "training.json").write_text("{}\n")
    files = {str(path.relative_to(checkpoint)): {"bytes": path.stat().st_size, "sha256": sha256(path)}
             for path in checkpoint.rglob("*") if path.is_file()}  # fmt: skip
    (checkpoint / "manifest.json").write_text(json.dumps(seal({"step": 1, "files": files})))
    return checkpoint / "model"


def write_shop(folder: Path) -> Path:
    """All of it into ``folder``."""
    write_catalogue(folder)
    prepare(
        folder / "shop.csv", folder / "stores" / "shop", encoder=ENCODER, grid=GRID, patch_pixels=PATCH_PIXELS,
        columns={"image": "photo"}, holdout=0.3, device="cpu",
    )  # fmt: skip
    write_run(folder / "runs" / "shop", FeatureStore.open(folder / "stores" / "shop"))
    return folder
