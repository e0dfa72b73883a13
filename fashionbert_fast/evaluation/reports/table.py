"""The figures of an evaluation as a table for people."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from fashionbert_fast.evaluation.ranking.protocols import DIRECTIONS
from fashionbert_fast.evaluation.ranking.ranks import RECALLS

TWINS = {
    "queries_with_a_twin_title": "with a candidate of the very same title",
    "queries_with_a_twin_photo": "with a candidate of the very same photo",
    "queries_with_other_views": "whose product has other views, which are no candidates",
}


def table(result: dict[str, Any]) -> Table:
    """The figures as a table of percentages, 95% intervals below them, with what a guesser would get."""
    title = f"protocol {result['protocol']}: {result['queries']} queries, {result['candidates']} candidates each"
    title += "" if (score := result.get("score", "match")) == "match" else f", by {score}"
    faulty = result["grouping"] == "released-faulty"
    shown = Table(title=title + (" (released, FAULTY grouping)" if faulty else ""), caption=_caption(result))
    shown.add_column("")
    for name in (*result["image_to_text"], "MRR", "median rank"):
        shown.add_column(name, justify="right")
    _add_directions(shown, result)
    if not faulty:
        C = result["candidates"]
        chance = [f"{100 * min(1.0, k / C):.2f}" for k in RECALLS]
        mrr = sum(1 / rank for rank in range(1, C + 1)) / C
        shown.add_row("chance", *chance, f"{100 * mrr:.2f}", f"{(C + 1) / 2:g}", style="dim")
        others = {name: found for name, found in result.get("scores", {}).items() if name != score}
        for name, found in others.items():
            shown.add_section()
            shown.add_row(f"by {name}\naccuracy {100 * found['alignment_accuracy']:.2f}", style="dim")
            _add_directions(shown, found)
        _add_lists(shown, result)
    return shown


def _add_directions(shown: Table, result: dict[str, Any]) -> None:
    """A row for each direction, intervals below where there are any."""
    ends, names = result.get("intervals"), list(result["image_to_text"])
    for direction in DIRECTIONS:
        mrr, middle = 100 * result["mrr"][direction], result["median_rank"][direction]
        cells = [*_recalls(result, direction), f"{mrr:.2f}", f"{middle:g}"]
        if ends is not None:
            below = [_ends(ends[direction][name]) for name in names]
            below += [_ends(ends["mrr"][direction]), "{:g}-{:g}".format(*ends["median_rank"][direction])]
            cells = [f"{cell}\n[dim]{end}[/dim]" for cell, end in zip(cells, below, strict=True)]
        shown.add_row(_arrow(direction), *cells)


def _arrow(direction: str) -> str:
    return direction.replace("_to_", " -> ")


def _recalls(result: dict[str, Any], direction: str) -> list[str]:
    return [f"{100 * value:.2f}" for value in result[direction].values()]


def _ends(ends: list[float]) -> str:
    return "{:.1f}-{:.1f}".format(*(100 * end for end in ends))


def _add_lists(shown: Table, result: dict[str, Any]) -> None:
    """Recall apart for lists that were and were not topped up, where there are both."""
    by_list = result.get("by_list", {})
    for name, found in by_list.items() if len(by_list) > 1 else ():
        shown.add_section()
        shown.add_row(f"{name.replace('_', ' ')} ({found['queries']})", style="dim")
        for direction in DIRECTIONS:
            below = [_ends(ends) for ends in found["intervals"][direction].values()]
            cells = zip(_recalls(found, direction), below, strict=True)
            shown.add_row(_arrow(direction), *(f"{cell}\n[dim]{end}[/dim]" for cell, end in cells))


def _caption(result: dict[str, Any]) -> str:
    ends = result.get("intervals")
    within = f" [{_ends(ends['alignment_accuracy'])}]" if ends else ""
    lines = [f"alignment accuracy {100 * result['alignment_accuracy']:.2f}{within} (chance 50.00)"]
    if ends:
        lines[0] += "; 95% intervals by bootstrap over the queries"
    if "calibrated_on" in result:
        lines += _learnt(result)
    if "random_ties" in result and any(result["queries_with_ties"].values()):
        parts = (
            f"{_arrow(name)} of {result['queries_with_ties'][name]}, R@1 {100 * found['R@1']:.2f} at random"
            for name, found in result["random_ties"].items()
        )
        lines.append(f"queries with ties, which count against the model: {', '.join(parts)}")
    if result["topped_up"]:
        lines.append(
            f"lists topped up: {result['topped_up_from_category']} from the category, "
            f"{result['topped_up_from_anywhere']} from anywhere"
        )
    for key, what in TWINS.items():
        if result[key]:
            lines.append(f"queries {what}: {result[key]}")
    found = result.get("leaks", {"products": 0})
    if found["products"]:
        lines.append(
            f"WARNING: {found['products']} products of split {result['split']} are known from training "
            f"({found['title']} by title, {found['photo']} by photo, {found['group']} by group): these figures "
            "flatter the model; a hold-out drawn by fashionbert prepare keeps such products apart"
        )
    for key, how in (("recognition", "linear probe"), ("recognition_finetuned", "fine-tuned")):
        for level in ("category", "subcategory"):
            found = result.get(key, {}).get(level)
            if found and "skipped" not in found:
                accuracy, macro = (
                    f"{100 * found[name]:.2f} [{_ends(found['intervals'][name])}]" for name in ("accuracy", "macro_f1")
                )
                lines.append(
                    f"{level} recognition, {how}: accuracy {accuracy}, macro-F1 {macro} "
                    f"(commonest class {100 * found['majority']:.2f})"
                )
    if work := result.get("throughput"):
        ranks = f" on {work['ranks']} processes" if work["ranks"] > 1 else ""
        of = "pairs" if "pairs" in work else "sequences"
        what = "pairs scored" if of == "pairs" else "pairs, titles and photos computed"
        lines.append(
            f"{work[of]:,} distinct {what} in {work['seconds']:,.1f} s{ranks}: "
            f"{work[f'{of}_per_s']:,.0f} {of}/s, {work['tokens_per_s']:,.0f} tokens/s"
        )
    return "\n".join(lines)


def _learnt(result: dict[str, Any]) -> list[str]:
    """What was learnt of the scores, on which rows, and whether those are the reported ones."""
    on, lines = f"split {result['calibrated_on']}", []
    for name, learnt in result["calibration"].items():
        weight = f", similarity weighted {learnt['weight']:g}" if "weight" in learnt else ""
        lines.append(f"{name}: threshold {learnt['threshold']:.4g}{weight}, learnt on {on}")
    if any("validation" in found for found in result.get("scores", {}).values()):
        lines.append(f"{result['score']} ranks best of all on {on}")
    if same := result["calibration_products_reported"]:
        lines.append(f"thresholds, weight and choice are learnt on the rows reported ({same} products): they flatter")
    return lines
