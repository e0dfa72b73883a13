"""Breaks of the data's way: catalogue, photos, store, masks, pairs, batches."""

from __future__ import annotations

from benchmarks.mutants.mutant import Mutant

DATA = "fashionbert_fast/data/"
BATCHES = ("tests/data/test_batches.py",)
CATALOGUE = ("tests/data/test_catalogue.py",)
ENCODER = ("tests/data/test_patch_encoder.py",)
GOLDEN = ("tests/data/test_golden_photo.py",)
FIELDS = ("tests/test_every_field.py",)
MASKING = ("tests/data/test_masking.py",)
PREPARE = ("tests/data/test_prepare.py",)
SAMPLING = ("tests/data/test_sampling.py",)
STORE = ("tests/data/test_store.py",)

MUTANTS = (
    Mutant(
        "photos-as-bgr",
        DATA + "patch_encoder.py",
        "return np.asarray(square)",
        "return np.asarray(square)[..., ::-1].copy()",
        (*GOLDEN, *ENCODER),
    ),
    Mutant(
        "transparent-photos-on-black",
        DATA + "patch_encoder.py",
        'Image.new("RGBA", upright.size, "white")',
        'Image.new("RGBA", upright.size, "black")',
        ENCODER,
    ),
    Mutant(
        "photos-lie-on-their-side",
        DATA + "patch_encoder.py",
        "upright = ImageOps.exif_transpose(image)",
        "upright = image",
        ENCODER,
    ),
    Mutant(
        "grid-of-patches-transposed",
        DATA + "patch_encoder.py",
        "images_ISS3.view(images, grid, h, grid, h, channels).transpose(2, 3)",
        "images_ISS3.view(images, grid, h, grid, h, channels).permute(0, 3, 1, 2, 4, 5)",
        (*GOLDEN, *ENCODER),
    ),
    Mutant(
        "mean-is-not-subtracted",
        DATA + "patch_encoder.py",
        "self.shift_3 = -torch.tensor(backbone.mean, device=self.device) / std",
        "self.shift_3 = 0 * std",
        (*GOLDEN, *ENCODER),
    ),
    Mutant(
        "not-divided-by-the-deviation",
        DATA + "patch_encoder.py",
        "self.scale_3 = 1 / (255 * std)",
        "self.scale_3 = 1 / (255 * torch.ones_like(std))",
        (*GOLDEN, *ENCODER),
    ),
    Mutant(
        "manifest-states-another-normalisation",
        DATA + "patch_encoder.py",
        'normalisation={"mean": list(b.mean), "std": list(b.std)},',
        'normalisation={"mean": list(b.mean), "std": list(b.mean)},',
        (*GOLDEN, *ENCODER),
    ),
    Mutant(
        "weights-hash-covers-names-alone",
        DATA + "backbones.py",
        "        digest.update(values.contiguous().numpy().tobytes())\n",
        "",
        ENCODER,
    ),
    Mutant(
        "deviation-of-features-is-ignored",
        DATA + "backbones.py",
        "return (self.trunk(pixels_B3hw) - self.mean_D) * self.scale_D",
        "return self.trunk(pixels_B3hw) - self.mean_D",
        ENCODER,
    ),
    Mutant(
        "hold-out-ignores-the-seed",
        DATA + "prepare.py",
        'hashlib.sha256(f"{seed} {product',
        'hashlib.sha256(f"{product',
        PREPARE,
    ),
    Mutant(
        "a-broken-photo-shifts-the-rows",
        DATA + "prepare.py",
        "            images.append(read_image(product.image, side))\n            good.append(product)\n",
        "            good.append(product)\n            images.append(read_image(product.image, side))\n",
        PREPARE,
    ),
    Mutant(
        "batches-in-the-order-they-are-done",
        DATA + "prepare.py",
        "            if len(waiting) >= ahead:\n                yield waiting.popleft().result()\n",
        "            if len(waiting) >= ahead:\n                yield waiting.pop().result()\n",
        PREPARE,
    ),
    Mutant(
        "duplicate-ids-are-accepted",
        DATA + "catalogue.py",
        "    if identity in seen:\n",
        "    if identity in seen and False:\n",
        CATALOGUE,
    ),
    Mutant(
        "quotes-of-csv-are-letters",
        DATA + "catalogue.py",
        "reader = csv.reader(file)",
        "reader = csv.reader(file, quoting=csv.QUOTE_NONE)",
        CATALOGUE,
    ),
    Mutant(
        "val-is-for-training",
        DATA + "catalogue.py",
        '"val": "validation",',
        '"val": "train",',
        CATALOGUE,
    ),
    Mutant(
        "rows-are-counted-from-zero",
        DATA + "catalogue.py",
        "first = reader.line_num + 1",
        "first = reader.line_num",
        CATALOGUE,
    ),
    Mutant(
        "an-edited-manifest-is-believed",
        DATA + "store.py",
        'if manifest.fingerprint != value.get("fingerprint"):',
        'if not value.get("fingerprint"):',
        STORE,
    ),
    Mutant(
        "deviation-is-not-compared",
        DATA + "store.py",
        '    "normalisation.mean", "normalisation.std",\n',
        '    "normalisation.mean",\n',
        STORE,
    ),
    Mutant(
        "features-of-another-size-are-mapped",
        DATA + "store.py",
        "        if size == expected:\n",
        "        if size >= expected:\n",
        STORE,
    ),
    Mutant(
        "every-split-is-all-rows",
        DATA + "store.py",
        "        if split is None:\n",
        '        if split != "test":\n',
        (*STORE, *FIELDS),
    ),
    Mutant(
        "letters-keep-their-case",
        DATA + "wordpiece.py",
        'BertTokenizerFast(vocab=str(directory / "vocab.txt"), do_lower_case=True)',
        'BertTokenizerFast(vocab=str(directory / "vocab.txt"), do_lower_case=False)',
        ("tests/data/test_wordpiece.py", *BATCHES),
    ),
    Mutant(
        "masks-do-not-follow-the-seed",
        DATA + "counter_rng.py",
        "_mix(np.uint64(seed % 2**64) + _GAMMA)",
        "_mix(np.uint64(0) + _GAMMA)",
        (*SAMPLING, *MASKING),
    ),
    Mutant(
        "epochs-repeat-each-other",
        DATA + "counter_rng.py",
        "for value in (int(stream), epoch, *counters):",
        "for value in (int(stream), 0, *counters):",
        (*SAMPLING, *MASKING),
    ),
    Mutant(
        "every-chosen-word-becomes-mask",
        DATA + "masking.py",
        "np.where(action < masking.keep + masking.replace, random_id, mask_id)",
        "np.where(action < masking.keep, random_id, mask_id)",
        MASKING,
    ),
    Mutant(
        "patches-masked-rounded-down",
        DATA + "masking.py",
        "count = max(1, round(rate * patches)) if rate > 0 else 0",
        "count = int(rate * patches)",
        (*MASKING, *BATCHES),
    ),
    Mutant(
        "mask-of-patches-inverted",
        DATA + "masking.py",
        "mask_BP = np.zeros(keys_BP.shape, dtype=bool)",
        "mask_BP = np.ones(keys_BP.shape, dtype=bool)",
        (*MASKING, *BATCHES),
    ),
    Mutant(
        "labels-of-matches-inverted",
        DATA + "sampling.py",
        "np.where(negative, partner, rows), ~negative)",
        "np.where(negative, partner, rows), negative)",
        SAMPLING,
    ),
    Mutant(
        "share-of-mismatches-inverted",
        DATA + "sampling.py",
        "Stream.NEGATIVE, epoch, rows) < negative_rate",
        "Stream.NEGATIVE, epoch, rows) >= negative_rate",
        FIELDS,
    ),
    Mutant(
        "category-in-place-of-sub-category",
        DATA + "batches.py",
        'if self.pairing.negatives == "category" else self.store.subcategories',
        'if self.pairing.negatives == "subcategory" else self.store.categories',
        (*BATCHES, *FIELDS),
    ),
    Mutant(
        "one-epoch-more-of-random-negatives",
        DATA + "batches.py",
        "epoch < self.pairing.random_epochs",
        "epoch <= self.pairing.random_epochs",
        (*BATCHES, *FIELDS),
    ),
    Mutant(
        "match-and-mismatch-masked-alike",
        DATA + "batches.py",
        "samples = text_rows * 2 + is_match",
        "samples = text_rows * 2",
        BATCHES,
    ),
    Mutant(
        "targets-by-pair-instead-of-image",
        DATA + "batches.py",
        "mpm_target_K=image_index_B[pair_K] * P",
        "mpm_target_K=torch.from_numpy(pair_K) * P",
        BATCHES,
    ),
    Mutant(
        "every-rank-takes-the-first-part",
        DATA + "batches.py",
        "first = in_epoch * self.global_batch + self.rank * self.micro_batch_size",
        "first = in_epoch * self.global_batch",
        BATCHES,
    ),
    Mutant(
        "mismatches-masked-only-where-predicted",
        DATA + "batches.py",
        "            sequences.append(mask_tokens(ids, chosen, sample",
        "            chosen = chosen if is_predicted else NOTHING\n"
        "            sequences.append(mask_tokens(ids, chosen, sample",
        BATCHES,
    ),
    Mutant(
        "titles-are-not-cut",
        DATA + "batches.py",
        "truncation=True, max_length=max_text_tokens",
        "truncation=False",
        (*FIELDS, *BATCHES),
    ),
)
