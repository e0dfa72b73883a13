"""Which products are held out: twins together, by a hash of what the catalogue holds, never of its order.

Shapes: N rows.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence

from fashionbert_fast.catalogue.twins import KINDS, bound
from fashionbert_fast.errors import InputError

SPLIT_BY = ",".join(KINDS)
TOLERANCE = 0.25  # of the share asked for: hashes alone decide within it
LARGE = 0.1  # of the catalogue: more in one group than this is hardly one product


def parse_split_by(text: str) -> tuple[str, ...]:
    """ "group,title" -> ("group", "title"); "none" -> (). InputError on anything else."""
    if text == "none":
        return ()
    names = tuple(name.strip() for name in text.split(","))
    unknown = [name for name in names if name not in KINDS]
    if unknown:
        raise InputError(f"--split-by {text}: {unknown[0]!r} is unknown; write none, or some of {SPLIT_BY}")
    return names


def hold_out(
    columns: Mapping[str, Sequence[str]], holdout: float, seed: int, by: Sequence[str], test: float = 0.0
) -> list[str]:
    """The split of every row of a store's ``columns``; about ``holdout`` of them in "validation", about ``test`` in
    "test", the rest in "train".

    Rows bound by one of ``by`` (see `twins.KINDS`), directly or through others, land in the same split: the one that a
    hash of ``seed`` and the smallest id among them gives, so that rows added later move no others. Where that misses
    ``holdout`` by more than a quarter of it, as in small catalogues and those of large groups, those are held out that
    fit, in the order of their hashes. "test" is taken likewise from the other end of the hashes, of what is not in
    "validation", which is the same whatever ``test`` is.
    """
    component_N = bound(columns, by).tolist()
    smallest: dict[int, str] = {}
    for component, identity in zip(component_N, columns["id"], strict=True):
        smallest[component] = min(smallest.get(component, identity), identity)
    place = {component: _place(f"{seed} {identity}") for component, identity in smallest.items()}
    sizes = Counter(component_N)
    in_order = sorted(place, key=place.__getitem__)
    held = _share(in_order, {component for component in place if place[component] < holdout * 2**64}, sizes, holdout)
    others = [component for component in reversed(in_order) if component not in held]
    tested = _share(others, {component for component in others if place[component] >= (1 - test) * 2**64}, sizes, test)
    split = dict.fromkeys(held, "validation") | dict.fromkeys(tested, "test")
    return [split.get(component, "train") for component in component_N]


def _share(in_order: Sequence[int], hashed: set[int], sizes: Counter[int], share: float) -> set[int]:
    """``hashed``; where it misses ``share`` of all rows by more than `TOLERANCE`, those of ``in_order`` that fit."""
    wanted = share * sizes.total()
    if abs(sum(sizes[component] for component in hashed) - wanted) > wanted * TOLERANCE:
        return _nearest(in_order, sizes, wanted)
    return hashed


def _place(key: str) -> int:
    """A hash of ``key``, below 2**64."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")


def _nearest(components: Sequence[int], sizes: Mapping[int, int], wanted: float) -> set[int]:
    """Those of ``components`` that, in turn, fit into ``wanted`` rows, and one more where that comes nearer to it."""
    held, left = set(), wanted
    for component in components:
        if sizes[component] <= left:
            held.add(component)
            left -= sizes[component]
    rest = [component for component in components if component not in held]
    last = min(rest, key=lambda component: abs(left - sizes[component]), default=None)
    if last is not None and abs(left - sizes[last]) < left:
        held.add(last)
    return held


def split_warnings(
    columns: Mapping[str, Sequence[str]], holdout: float, by: Sequence[str], test: float = 0.0
) -> list[str]:
    """What is odd about a split made by `hold_out`: one huge group, or a share far from ``holdout`` or ``test``."""
    warnings, total = [], len(columns["id"])
    component, size = Counter(bound(columns, by).tolist()).most_common(1)[0]
    if size > 2 and size > LARGE * total:
        warnings.append(
            f"{size} of {total} products count as one, with id {columns['id'][component]} (bound by {', '.join(by)}), "
            "and fall into one split; does a column hold the same for all? see --column group= and --split-by"
        )
    for name, option, share in (("validation", "--holdout", holdout), ("test", "--test", test)):
        held = sum(split == name for split in columns["split"])
        far = max(share * TOLERANCE, 3 * math.sqrt(share * (1 - share) / total))
        if share and (not held or abs(held / total - share) > far):
            warnings.append(
                f"{held} of {total} products are held out ({held / total:.1%}) where {option} asked for {share:.1%}; "
                "another --seed, or less in --split-by, gives another share"
            )
    return warnings
