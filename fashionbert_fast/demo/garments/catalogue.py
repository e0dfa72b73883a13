"""The demo's catalogue: garments drawn on the fly, with the titles a shop would give them, in the Kaggle layout.

Products of one sub-category differ only in what can be seen on the photo: colours, pattern, sleeve, neckline, length,
closure, pockets... Each title names what is visible, in one of many wordings, so that telling a title's own photo from
another of the same sub-category takes reading the details. Nothing is downloaded and no asset is stored: a seed and a
number of products give the same catalogue, byte for byte, with the same Pillow.
"""

from __future__ import annotations

import csv
import io
import os
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from fashionbert_fast.demo.garments import asking, drawing, painters
from fashionbert_fast.demo.garments.drawing import COLOURS, PATTERNS, Look, Sheet
from fashionbert_fast.demo.garments.wording import (
    AFTER,
    ALIKE,
    BEFORE,
    BRANDS,
    COLOUR_WORDS,
    GENDERS,
    PATTERN_WORDS,
    SEASONS,
    USAGES,
    WOMENS,
)
from fashionbert_fast.errors import InputError

COLUMNS = (
    "id",
    "gender",
    "masterCategory",
    "subCategory",
    "articleType",
    "baseColour",
    "season",
    "year",
    "usage",
    "productDisplayName",
    "split",
)
# The protocol ranks a product's own photo among 100 others of its sub-category, so 101 must be held out of each.
VALIDATION_PER_SUBCATEGORY = 104
MAX_TITLE_WORDS = 15
PLAIN_COLOUR_WORD = 0.7  # how often a colour is called by its plain name, not by a random one of its names
FIRST_ID = 10_000


@dataclass(frozen=True)
class Kind:
    """A sub-category: the words for it and, per attribute, its values (repeat a value to make it likelier)."""

    category: str
    nouns: tuple[str, ...]
    attributes: dict[str, tuple[str, ...]]
    painter: Callable[[Sheet], None]


KINDS: dict[str, Kind] = {
    "T-shirts": Kind(
        "Topwear",
        ("T-shirt", "tee", "T-shirt", "top"),
        {
            "sleeve": ("none", "short", "short", "three-quarter", "long"),
            "neck": ("round", "v", "scoop", "square"),
            "length": ("cropped", "regular", "long"),
            "pocket": ("", "chest"),
        },
        painters.draw_top,
    ),
    "Shirts": Kind(
        "Topwear",
        ("shirt", "shirt", "blouse"),
        {
            "sleeve": ("none", "short", "three-quarter", "long"),
            "neck": ("collar", "collar", "v"),
            "closure": ("buttons", "buttons", "zip"),
            "length": ("cropped", "regular", "long"),
            "pocket": ("", "chest", "side"),
        },
        painters.draw_top,
    ),
    "Sweaters": Kind(
        "Topwear",
        ("sweater", "jumper", "pullover"),
        {
            "sleeve": ("short", "three-quarter", "long"),
            "neck": ("round", "v", "roll"),
            "knit": ("plain knit", "ribbed", "cable"),
            "length": ("cropped", "regular", "long"),
            "pocket": ("", "", "kangaroo"),
        },
        painters.draw_top,
    ),
    "Jackets": Kind(
        "Topwear",
        ("jacket", "jacket", "coat"),
        {
            "sleeve": ("none", "three-quarter", "long"),
            "neck": ("collar", "hood", "roll"),
            "closure": ("buttons", "zip"),
            "length": ("cropped", "regular", "long"),
            "pocket": ("", "chest", "side"),
        },
        painters.draw_top,
    ),
    "Trousers": Kind(
        "Bottomwear",
        ("trousers", "pants", "trousers"),
        {
            "fit": ("slim", "straight", "wide"),
            "length": ("cropped", "full"),
            "waist": ("", "belt", "drawstring", "button"),
            "pocket": ("", "cargo", "side"),
            "hem": ("", "", "turned-up"),
        },
        painters.draw_legs,
    ),
    "Shorts": Kind(
        "Bottomwear",
        ("shorts",),
        {
            "fit": ("straight", "wide"),
            "length": ("mini", "knee"),
            "waist": ("", "belt", "drawstring", "button"),
            "pocket": ("", "cargo", "side"),
            "hem": ("", "", "turned-up"),
        },
        painters.draw_legs,
    ),
    "Skirts": Kind(
        "Bottomwear",
        ("skirt",),
        {
            "shape": ("pencil", "a-line", "flared", "pleated"),
            "length": ("mini", "knee", "midi", "maxi"),
            "waist": ("", "belt", "drawstring"),
            "hem": ("", "ruffle", "slit"),
            "closure": ("", "", "buttons"),
        },
        painters.draw_skirt,
    ),
    "Dresses": Kind(
        "One-piece",
        ("dress", "dress", "gown"),
        {
            "sleeve": ("none", "short", "three-quarter", "long"),
            "neck": ("round", "v", "square", "collar", "straps"),
            "shape": ("pencil", "a-line", "flared", "pleated"),
            "length": ("mini", "knee", "midi", "maxi"),
            "waist": ("", "belt", "bow"),
        },
        painters.draw_dress,
    ),
    "Jumpsuits": Kind(
        "One-piece",
        ("jumpsuit", "jumpsuit", "romper"),
        {
            "sleeve": ("none", "short", "long"),
            "neck": ("round", "v", "collar", "straps"),
            "fit": ("straight", "wide"),
            "length": ("short", "cropped", "full"),
            "closure": ("", "buttons", "zip"),
            "waist": ("", "belt", "drawstring"),
        },
        painters.draw_jumpsuit,
    ),
    "Sneakers": Kind(
        "Accessories",
        ("sneakers", "trainers", "sports shoes"),
        {
            "height": ("low", "high"),
            "closure": ("laces", "velcro", "slip-on"),
            "sole": ("white sole", "gum sole", "black sole"),
            "platform": ("", "yes"),
        },
        painters.draw_sneaker,
    ),
    "Boots": Kind(
        "Accessories",
        ("boots",),
        {
            "height": ("ankle", "mid", "knee"),
            "heel": ("flat", "block", "high"),
            "closure": ("", "laces", "zip", "buckle"),
        },
        painters.draw_boot,
    ),
    "Handbags": Kind(
        "Accessories",
        ("bag", "handbag", "purse"),
        {
            "shape": ("tote", "bucket", "round", "clutch"),
            "handle": ("", "short", "shoulder", "chain"),
            "closure": ("", "zip", "buckle", "clasp"),
            "extra": ("", "", "tassel", "pocket"),
        },
        painters.draw_bag,
    ),
}


def _look(kind: Kind, generator: random.Random) -> Look:
    """A random garment of this kind that can exist."""
    base = generator.choice(tuple(COLOURS))
    pattern = generator.choice(("plain", *PATTERNS))  # plain twice: shops sell more of it
    second = None
    if pattern != "plain" or generator.random() < 0.5:
        clash = {base}.union(*(pair for pair in ALIKE if base in pair))
        second = generator.choice([colour for colour in COLOURS if colour not in clash])
    details = {name: generator.choice(values) for name, values in kind.attributes.items()}
    if details.get("neck") == "straps":
        details["sleeve"] = "none"
    return Look(base, second, pattern, details)


def _words(look: Look, generator: random.Random) -> tuple[list[str], list[str]]:
    """What is said before the noun and what the garment comes with, both in random order."""
    before, after = [], []
    for name, value in look.details.items():
        if name == "sleeve" and look.details.get("neck") == "straps":
            continue  # says it already
        for table, said in ((BEFORE, before), (AFTER, after)):
            if options := table.get(name, {}).get(value):
                said.append(generator.choice(options))
    before, after = [word for word in before if word], [word for word in after if word]
    generator.shuffle(before)
    generator.shuffle(after)
    return before, after


def _colours(look: Look, after: list[str], trailing: bool, generator: random.Random) -> str:
    """The colours and the pattern, to stand before the noun or, `trailing`, behind it ("shirt in ...").

    What the garment then comes "with" goes first into `after`.
    """

    def say(colour: str) -> str:
        words = COLOUR_WORDS.get(colour, (colour,))
        return words[0] if generator.random() < PLAIN_COLOUR_WORD else generator.choice(words)

    base = say(look.base)
    if look.pattern == "plain":
        if look.second:
            after.insert(0, f"{say(look.second)} {generator.choice(('trim', 'contrast trim', 'details'))}")
        return generator.choice((base, base, f"plain {base}", f"solid {base}"))
    assert look.second is not None
    adjectives, things = PATTERN_WORDS[look.pattern]
    if generator.random() < 0.35:
        after.insert(0, f"{say(look.second)} {generator.choice(things)}")
        return base
    joint = generator.choice((" and ", " & ", "/"))
    return f"{base}{joint}{say(look.second)} {generator.choice(things if trailing else adjectives)}"


def _core(kind: Kind, look: Look, form: int, generator: random.Random) -> str:
    """The part of a title that says what can be seen."""
    before, after = _words(look, generator)
    colours = _colours(look, after, form == 1, generator)
    noun, adjectives = generator.choice(kind.nouns), " ".join(before)
    listed = " and ".join([", ".join(after[:-1])] * (len(after) > 1) + after[-1:])
    order = (f"{colours} {adjectives} {noun}", f"{adjectives} {noun} in {colours}", f"{adjectives} {colours} {noun}")
    return " ".join(f"{order[form]} {'with ' + listed if listed else ''}".split())


def _title(kind: Kind, look: Look, gender: str, usage: str, generator: random.Random) -> str:
    """A shop's title: the visible attributes always; brand, gender and use only while MAX_TITLE_WORDS has room."""
    form = generator.randrange(3)
    tries = [_core(kind, look, form, generator) for _ in range(8)]
    title = next(
        (core for core in tries if len(core.split()) <= MAX_TITLE_WORDS), min(tries, key=lambda t: len(t.split()))
    )
    brand, who = generator.choice(BRANDS), generator.choice(GENDERS[gender])
    lead = ([brand, who], [who], [usage.lower()])[form]
    for extra in generator.sample(lead, k=generator.randint(0, len(lead))):
        if len(f"{extra} {title}".split()) <= MAX_TITLE_WORDS:
            title = f"{extra} {title}"
    close = ("", f" by {brand}", f" | {brand}")[form]
    if generator.random() < 0.5 and len((title + close).split()) <= MAX_TITLE_WORDS:
        title += close
    return title[0].upper() + title[1:]


@dataclass(frozen=True)
class Garment:
    """A product before it is drawn."""

    id: str
    subcategory: str
    title: str
    look: Look
    row: dict[str, str]


def garments(products: int, seed: int) -> list[Garment]:
    """The catalogue without its photos: sub-categories take turns, each product is a function of (seed, its number)."""
    per_kind = products // len(KINDS)
    if per_kind <= VALIDATION_PER_SUBCATEGORY:
        raise InputError(
            f"products: {products} leave nothing to train on beside {VALIDATION_PER_SUBCATEGORY} held out of each of "
            f"{len(KINDS)} sub-categories; ask for {(VALIDATION_PER_SUBCATEGORY + 1) * len(KINDS)} or more"
        )
    names = tuple(KINDS)
    made = []
    for number in range(products):
        subcategory, turn = names[number % len(names)], number // len(names)
        generator = random.Random(f"garment {seed} {number}")
        kind = KINDS[subcategory]
        look = _look(kind, generator)
        gender = "Women" if subcategory in WOMENS else generator.choice(tuple(GENDERS))
        usage = generator.choice(USAGES)
        identity = str(FIRST_ID + number)
        row = {
            "id": identity,
            "gender": gender,
            "masterCategory": kind.category,
            "subCategory": subcategory,
            "articleType": subcategory,
            "baseColour": look.base.title(),
            "season": generator.choice(SEASONS),
            "year": str(generator.randint(2019, 2026)),
            "usage": usage,
            "productDisplayName": _title(kind, look, gender, usage, generator),
            "split": "validation" if turn < VALIDATION_PER_SUBCATEGORY else "train",
        }
        made.append(Garment(identity, subcategory, row["productDisplayName"], look, row))
    return made


def photograph(garment: Garment, seed: int) -> Image.Image:
    """The garment's photo, [224, 224] RGB; the same garment and seed give the same photo."""
    return drawing.draw(garment.look, KINDS[garment.subcategory].painter, random.Random(f"photo {seed} {garment.id}"))


def _jpeg(garment: Garment, seed: int) -> bytes:
    buffer = io.BytesIO()
    photograph(garment, seed).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def write_catalogue(out: Path, *, products: int = 3648, seed: int = 0, queries: bool = False) -> Path:
    """Draw a catalogue into `out` in the Kaggle layout: styles.csv, with a `split` column, and images/<id>.jpg.

    Every sub-category has VALIDATION_PER_SUBCATEGORY products in the validation split; the others are for training.
    queries: also what shoppers asked for (`asking`), queries.csv. Returns `out`. Raises InputError when `products`
    leaves nothing to train on or `out` cannot be written.
    """
    out = Path(out)
    catalogue = garments(products, seed)
    try:
        (out / "images").mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow lets go of the interpreter while it draws
            for garment, photo in zip(catalogue, pool.map(lambda g: _jpeg(g, seed), catalogue), strict=True):
                (out / "images" / f"{garment.id}.jpg").write_bytes(photo)
        with (out / "styles.csv").open("w", newline="", encoding="utf-8") as file:
            writer: csv.DictWriter[str] = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(garment.row for garment in catalogue)
        if queries:
            with (out / "queries.csv").open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([("query", "id"), *asking.queries(catalogue, seed)])
    except OSError as error:
        raise InputError(f"{out}: cannot write the demo catalogue ({error}); choose a writable folder") from error
    return out
