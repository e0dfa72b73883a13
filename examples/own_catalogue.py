"""Your own catalogue: from a CSV of titles and photos to a model, and what it thinks of titles and photos.

    python examples/own_catalogue.py shop.csv --image-column photo --out work

shop.csv needs the columns id and title, and one of paths of photos, relative to the CSV. The command line does the same
in `fashionbert prepare`, `pretrain` and `evaluate`; docs/training.md says what the settings are for.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from fashionbert_fast import FashionBertForPreTraining, FashionBertProcessor
from fashionbert_fast.config import load_config
from fashionbert_fast.engine.train import pretrain
from fashionbert_fast.features.prepare import prepare
from fashionbert_fast.features.store import FeatureStore


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", type=Path, help="a product a row: id, title, a photo's path, perhaps category and split")
    parser.add_argument("--image-column", default="image", help="the column of photos (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="where the feature store and the run go")
    parser.add_argument("--encoder", default="resnet50", help="of the patches; without a hub: efficientnet-lite0")
    parser.add_argument("--grid", type=int, default=8, help="patches a side (default: %(default)s)")
    parser.add_argument("settings", nargs="*", help="of training, as section.key=value, such as train.steps=2000")
    args = parser.parse_intermixed_args(arguments)
    store_path, run = args.out / "store", args.out / "run"

    # 1. Photos are cut into patches and encoded, once. Rows that cannot be used are named in problems.jsonl.
    report = prepare(args.csv, store_path, encoder=args.encoder, grid=args.grid, columns={"image": args.image_column})
    print(f"{report.products} products prepared, {report.skipped} skipped")

    # 2. Pre-training: masked words, masked patches, and whether a title and a photo belong together.
    pretrain(load_config("small", [f"data.store={store_path}", f"train.output={run}", *args.settings]))

    # 3. The model and its processor come back from the run: titles and photos in, probabilities out.
    model = FashionBertForPreTraining.from_pretrained(run)
    processor = FashionBertProcessor.from_pretrained(run)
    store = FeatureStore.open(store_path)
    titles, photos = store.titles[:5], store.images[:5]
    own = model.score(**processor(titles, photos))
    others = model.score(**processor(titles, photos[1:] + photos[:1]))  # each with the next one's photo
    for title, matches, differs in zip(titles, own.tolist(), others.tolist(), strict=True):
        print(f"{title}: {matches:.2f} with its own photo, {differs:.2f} with another")


if __name__ == "__main__":
    main()
