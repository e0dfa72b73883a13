"""What shoppers ask for when they look for the demo's garments: a few words, other ones than a shop's, some mistyped.

A query names the kind of a garment and up to three things that can be seen on it. All garments of its split that have
them were found by it, as a log of clicks would say.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Iterator

from fashionbert_fast.demo.garments.drawing import Look

KINDS = {
    "T-shirts": ("tshirt", "tee shirt", "jersey"),
    "Shirts": ("button-up", "dress shirt", "work shirt"),
    "Sweaters": ("knitwear", "woolly"),
    "Jackets": ("outerwear", "parka", "windbreaker"),
    "Trousers": ("slacks", "chinos", "bottoms"),
    "Shorts": ("short pants", "bermudas"),
    "Skirts": ("skirts", "kilt"),
    "Dresses": ("frock", "party outfit", "robe"),
    "Jumpsuits": ("playsuit", "one piece", "overall"),
    "Sneakers": ("kicks", "gym shoes", "runners"),
    "Boots": ("booties", "winter shoes"),
    "Handbags": ("satchel", "evening bag", "bags"),
}
COLOURS = {
    "black": ("black", "jet black"), "white": ("white", "ivory"), "grey": ("grey", "silver"), "red": ("red", "cherry"),
    "navy": ("navy", "midnight"), "blue": ("blue", "denim blue"), "green": ("green", "emerald"),
    "yellow": ("yellow", "lemon"), "orange": ("orange", "tangerine"), "pink": ("pink", "rose"),
    "purple": ("purple", "lilac"), "brown": ("brown", "camel"), "beige": ("beige", "nude"),
    "turquoise": ("turquoise", "aqua"),
}  # fmt: skip
PATTERNS = {
    "horizontal stripes": ("stripy", "sailor"), "vertical stripes": ("pin stripes", "long stripes"),
    "diagonal stripes": ("slanted stripes", "candy stripes"), "dots": ("dotty", "spotty"),
    "checks": ("checkered", "tartan"), "flowers": ("flowery", "blossom"), "two-tone": ("two colours", "half and half"),
}  # fmt: skip
DETAILS = {
    ("sleeve", "none"): ("no sleeves", "tank"), ("sleeve", "short"): ("short sleeves",),
    ("sleeve", "long"): ("long arms", "warm"), ("neck", "hood"): ("with hood",), ("neck", "roll"): ("polo neck",),
    ("neck", "v"): ("v neck",), ("neck", "straps"): ("thin straps",), ("length", "cropped"): ("belly free", "crop"),
    ("length", "maxi"): ("down to the floor",), ("length", "mini"): ("very short",), ("length", "long"): ("long",),
    ("fit", "slim"): ("tight",), ("fit", "wide"): ("baggy",), ("shape", "pleated"): ("pleats",),
    ("shape", "flared"): ("swing",), ("knit", "cable"): ("chunky knit",), ("height", "high"): ("hi top",),
    ("height", "ankle"): ("short shaft",), ("height", "knee"): ("over the calf",), ("heel", "high"): ("heels",),
    ("heel", "flat"): ("no heel",), ("platform", "yes"): ("thick sole",), ("handle", "chain"): ("on a chain",),
    ("closure", "velcro"): ("no laces",), ("closure", "zip"): ("zip up",), ("waist", "belt"): ("belted",),
}  # fmt: skip
MISTYPED = 0.12  # of the queries
Aspect = tuple[str, str]  # "colour", "pattern" or an attribute of the look, and its value


def queries(garments: Iterable, seed: int) -> Iterator[tuple[str, str]]:
    """(query, id) of every garment that a query found; one query begins at each garment. The same for the same seed."""
    shelves: dict[tuple[str, str], list[tuple[str, set[Aspect]]]] = defaultdict(list)
    listed = list(garments)
    for garment in listed:
        shelves[garment.subcategory, garment.row["split"]].append((garment.id, _aspects(garment.look)))
    for garment in listed:
        generator = random.Random(f"query {seed} {garment.id}")
        named = _named(garment.look, generator)
        text = _said(garment.subcategory, named, generator)
        for identity, aspects in shelves[garment.subcategory, garment.row["split"]]:
            if aspects.issuperset(named):
                yield text, identity


def _aspects(look: Look) -> set[Aspect]:
    return {("colour", look.base), ("pattern", look.pattern), *look.details.items()}


def _words(aspect: Aspect) -> tuple[str, ...]:
    kind, value = aspect
    return {"colour": COLOURS, "pattern": PATTERNS}.get(kind, {}).get(value) or DETAILS.get(aspect, ())


def _named(look: Look, generator: random.Random) -> list[Aspect]:
    """The colour nearly always, a pattern where there is one, a detail now and then."""
    named = [("colour", look.base)] if generator.random() < 0.9 else []
    if look.pattern != "plain":
        named.append(("pattern", look.pattern))
    details = sorted(aspect for aspect in look.details.items() if _words(aspect))
    if details and (len(named) < 2 or generator.random() < 0.4):
        named.append(generator.choice(details))
    return named


def _said(subcategory: str, named: list[Aspect], generator: random.Random) -> str:
    parts = [generator.choice(_words(aspect)) for aspect in named]
    parts.append(generator.choice(KINDS[subcategory]))
    generator.shuffle(parts)
    text = " ".join(parts)
    if generator.random() < MISTYPED:
        place = generator.randrange(len(text) - 1)
        text = text[:place] + text[place + 1] + text[place] + text[place + 2 :]  # two letters change places
    return text
