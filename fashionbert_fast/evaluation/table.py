"""The figures of an evaluation as a table for people."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from fashionbert_fast.evaluation.ranking import RECALLS

TWINS = {
    "queries_with_a_twin_title": "with a candidate of the very same title",
    "queries_with_a_twin_photo": "with a candidate of the very same photo",
    "queries_with_other_views": "whose product has other views, which are no candidates",
}


def table(result: dict[str, Any]) -> Table:
    """The figures as a table of percentages, with what a guesser would get."""
    title = f"protocol {result['protocol']}: {result['queries']} queries, {result['candidates']} candidates each"
    faulty = result["grouping"] == "released-faulty"
    shown = Table(title=title + (" (released, FAULTY grouping)" if faulty else ""), caption=_caption(result))
    shown.add_column("")
    names = list(result["image_to_text"])
    for name in names:
        shown.add_column(name, justify="right")
    shown.add_column("median rank", justify="right")
    for direction in ("image_to_text", "text_to_image"):
        recall = [f"{100 * result[direction][name]:.2f}" for name in names]
        shown.add_row(direction.replace("_to_", " -> "), *recall, f"{result['median_rank'][direction]:g}")
    if not faulty:
        chance = [f"{100 * min(1.0, k / result['candidates']):.2f}" for k in RECALLS]
        shown.add_row("chance", *chance, f"{(result['candidates'] + 1) / 2:g}", style="dim")
        _add_lists(shown, result)
    return shown


def _add_lists(shown: Table, result: dict[str, Any]) -> None:
    """Recall apart for lists that were and were not topped up, where there are both."""
    by_list = result.get("by_list", {})
    for name, found in by_list.items() if len(by_list) > 1 else ():
        shown.add_section()
        shown.add_row(f"{name.replace('_', ' ')} ({found['queries']})", style="dim")
        for direction in ("image_to_text", "text_to_image"):
            recall = [f"{100 * value:.2f}" for value in found[direction].values()]
            shown.add_row(direction.replace("_to_", " -> "), *recall)


def _caption(result: dict[str, Any]) -> str:
    lines = [f"alignment accuracy {100 * result['alignment_accuracy']:.2f} (chance 50.00)"]
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
    for level in ("category", "subcategory"):
        found = result.get("recognition", {}).get(level)
        if found and "skipped" not in found:
            lines.append(
                f"{level} recognition: accuracy {100 * found['accuracy']:.2f}, macro-F1 {100 * found['macro_f1']:.2f} "
                f"(commonest class {100 * found['majority']:.2f})"
            )
    return "\n".join(lines)
