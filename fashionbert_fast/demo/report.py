"""What the demo leaves to look at: a page of queries with their top five, and report.html with everything on it.

Shapes: Q queries, C candidates.
"""

from __future__ import annotations

import base64
import html
import textwrap
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from fashionbert_fast.evaluation.ranking.protocols import Scored
from fashionbert_fast.features.store import FeatureStore

RIGHT, WRONG = "#2a9d4a", "#d1495b"
TOP = 5


@dataclass(frozen=True)
class Example:
    """A title, its top five images, best first, and where its own image ended up."""

    title: str
    images: list[Path]
    scores: list[float]
    is_truth: list[bool]
    rank: int


def text_to_image_examples(store: FeatureStore, scored: Scored, image_root: Path) -> list[Example]:
    """Every query of ``scored`` as an example, in the order of the lists."""
    examples = []
    for q, query in enumerate(scored.lists.queries_Q):
        scores_C = scored.text_to_image_QC[q]
        order = scored.best_first("text_to_image", q)
        truth = int(scored.lists.truth_Q[q])
        rows = scored.rows_N[scored.lists.candidates_QC[q][order[:TOP]]]
        examples.append(
            Example(
                store.titles[scored.rows_N[query]],
                [image_root / store.images[row] for row in rows],
                [float(scores_C[c]) for c in order[:TOP]],
                [bool(c == truth) for c in order[:TOP]],
                int(np.flatnonzero(order == truth)[0]) + 1,
            )
        )
    return examples


def choose_examples(examples: list[Example], each: int) -> list[Example]:
    """``each`` queries whose own image came first, then as many where it did not: right and wrong, unselected else."""
    right = [example for example in examples if example.rank == 1][:each]
    wrong = [example for example in examples if example.rank > 1][:each]
    return right + wrong


def plot_queries(examples: list[Example], path: Path) -> None:
    """A row a query: the title, then its top five images; the true one framed green, the others red."""
    figure, axes = plt.subplots(
        len(examples), TOP + 1, figsize=(11, 1.75 * len(examples)), width_ratios=[1.7] + [1] * TOP, squeeze=False
    )
    for row, example in zip(axes, examples, strict=True):
        row[0].axis("off")
        colour = RIGHT if example.rank == 1 else WRONG
        title = textwrap.fill(example.title, 26)
        row[0].text(0, 0.55, title, fontsize=9, va="center", transform=row[0].transAxes)
        row[0].text(0, 0.05, f"true image: rank {example.rank}", fontsize=8, color=colour, transform=row[0].transAxes)
        for axis, image, score, is_truth in zip(row[1:], example.images, example.scores, example.is_truth, strict=True):
            axis.imshow(Image.open(image).convert("RGB"))
            axis.set_xticks([])
            axis.set_yticks([])
            axis.set_xlabel(f"{score:.3f}", fontsize=7, labelpad=1)
            for spine in axis.spines.values():
                spine.set_color(RIGHT if is_truth else WRONG)
                spine.set_linewidth(3 if is_truth else 1)
    figure.tight_layout(pad=0.6)
    figure.savefig(path, dpi=100)
    plt.close(figure)


STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#222}
h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem}img{max-width:100%}table{border-collapse:collapse}
td,th{padding:.2rem .8rem;border-bottom:1px solid #ddd;text-align:right}td:first-child,th:first-child{text-align:left}
p.note{color:#666}"""


def _picture(path: Path, alternative: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{html.escape(alternative)}" src="data:image/png;base64,{data}">'


def _figures(result: dict) -> str:
    names = list(result["image_to_text"])
    head = "".join(f"<th>{name}</th>" for name in names)
    rows = "".join(
        f"<tr><td>{label}</td>" + "".join(f"<td>{100 * result[key][name]:.1f}%</td>" for name in names) + "</tr>"
        for key, label in (("image_to_text", "image to text"), ("text_to_image", "text to image"))
    )
    chance = "".join(f"<td>{100 * int(name[2:]) / result['candidates']:.1f}%</td>" for name in names)
    return f"<table><tr><th></th>{head}</tr>{rows}<tr><td>guessing</td>{chance}</tr></table>"


def write_report(directory: Path, result: dict, summary: list[tuple[str, str]]) -> Path:
    """report.html in ``directory``: figures, curves, weights, queries; one file, pictures inside.

    Args:
        result: what `evaluate` gives. summary: (what, value) lines for the head of the page. losses.png, weights.png
            and queries.png are there already.
    """
    lines = "".join(f"<tr><td>{html.escape(a)}</td><td>{html.escape(b)}</td></tr>" for a, b in summary)
    page = f"""<!doctype html><html lang="en"><head><meta charset="utf-8"><title>fashionbert_fast demo</title>
<style>{STYLE}</style></head><body>
<h1>FashionBERT on a drawn catalogue</h1>
<table>{lines}</table>
<h2>Held-out products</h2>
<p>Alignment accuracy <b>{100 * result["alignment_accuracy"]:.1f}%</b> (guessing: 50%): does this photo belong to this
title, or is it another product of the same sub-category?</p>
{_figures(result)}
<p class="note">{result["queries"]} queries; each ranks its true counterpart among {result["candidates"]} products of
its own sub-category.</p>
<h2>What it learned, task by task</h2>{_picture(directory / "losses.png", "curves of the three losses")}
<h2>The adaptive weights over time</h2>{_picture(directory / "weights.png", "the three task weights over time")}
<h2>Titles and their five best photos, right and wrong</h2>
<p class="note">The true photo is framed green.</p>{_picture(directory / "queries.png", "queries with their top five")}
</body></html>
"""
    path = directory / "report.html"
    path.write_text(page, encoding="utf-8")
    return path
