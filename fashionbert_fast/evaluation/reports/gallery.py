"""A page to look at: queries with what the model found for them, photos inside; one file that can be sent around."""

from __future__ import annotations

import base64
import html
import io
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from fashionbert_fast.evaluation.ranking.protocols import DIRECTIONS, Scored
from fashionbert_fast.features.photo import read_image
from fashionbert_fast.features.store import FeatureStore
from fashionbert_fast.files import write_text

TOP = 8
SIDE = 112  # pixels of a photo
QUALITY = 80  # of its JPEG
WORDS = {  # of a score, by name
    "match": "the probability of a match",
    "similarity": "the similarity of title and photo",
    "sum": "the sum of match and similarity",
    "shortlist": "the probability of a match, of those that are similar enough to have one",
}
STYLE = """body{font:14px/1.4 system-ui,sans-serif;margin:2rem auto;max-width:80rem;padding:0 1rem;color:#222}
h1{font-size:1.4rem}h2{font-size:1.1rem;margin-top:2.5rem}.note{color:#666}
.row{display:flex;gap:.4rem;padding:.8rem 0;border-bottom:1px solid #ddd;align-items:flex-start;overflow-x:auto}
.query{flex:0 0 11rem}.query b{display:block;margin-bottom:.3rem}
figure{flex:0 0 112px;margin:0;padding:.25rem;border:3px solid transparent;border-radius:.3rem;overflow-wrap:anywhere}
figure.true{border-color:#2a9d4a}figcaption{font-size:.75rem;color:#555}
img,.gone{display:block;width:112px;height:112px;object-fit:cover}
.gone{background:#eee;color:#888;font-size:.75rem;line-height:112px;text-align:center}
.found{color:#2a9d4a}.missed{color:#d1495b}"""


def write_gallery(
    path: Path, store: FeatureStore, scored: Scored, *, queries: int, title: str, score: str = "match"
) -> dict[str, int]:
    """Write the page: the first ``queries`` queries of each direction, by id, with their best candidates.

    The true one is framed, and stands at the end where it is not among them. Photos are read from where the store's
    rows say that they lie. score: what was ranked by. Returns how many were "shown" and how many are "missing": not
    there, or not to be read.
    InputError where the file cannot be written.
    """
    photos = _Photos(store)
    rows_Q = scored.rows_N[scored.lists.queries_Q]
    places = np.argsort([store.ids[row] for row in rows_Q], kind="stable")[:queries].tolist()
    sections = []
    for direction in DIRECTIONS:
        ranks = scored.ranks()[direction].rank_Q
        body = "\n".join(_row(store, scored, photos, direction, place, int(ranks[place])) for place in places)
        sections.append(f"<h2>{direction.replace('_', ' ')}</h2>\n{body}")
    counts = {"shown": photos.shown, "missing": photos.missing}
    gone = f" {photos.missing} of {photos.shown + photos.missing} photos are not where the store says they lie." if (
        photos.missing
    ) else ""  # fmt: skip
    page = f"""<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>
<style>{STYLE}</style></head><body>
<h1>{html.escape(title)}</h1>
<p class="note">{len(places)} of {len(rows_Q)} queries, by id, with the {TOP} candidates that score best of
{scored.lists.candidates_QC.shape[1]}; below each {WORDS[score]}. The true one is framed green.{gone}</p>
{"".join(sections)}
</body></html>
"""
    write_text(path, page)
    return counts


def _row(store: FeatureStore, scored: Scored, photos: _Photos, direction: str, place: int, rank: int) -> str:
    lists, by_title = scored.lists, direction == "text_to_image"
    truth = int(lists.truth_Q[place])
    best = scored.best_first(direction, place)
    columns = best[:TOP].tolist()
    row = int(scored.rows_N[lists.queries_Q[place]])
    asked = html.escape(store.titles[row]) if by_title else photos.tag(row)
    colour = "found" if rank == 1 else "missed"
    query = (
        f'<div class="query"><b>{asked}</b><span class="note">{html.escape(store.ids[row])}</span><br>'
        f'<span class="{colour}">true {"photo" if by_title else "title"}: rank {rank} of {len(best)}</span></div>'
    )
    figures = []
    for column in columns if truth in columns else [*columns, truth]:
        candidate = int(scored.rows_N[lists.candidates_QC[place, column]])
        words = photos.tag(candidate) if by_title else html.escape(store.titles[candidate])
        score = scored.scores_QC(direction)[place, column]
        figures.append(
            f"<figure{' class=true' if column == truth else ''}>{words}<figcaption>"
            f"{html.escape(store.ids[candidate])} &middot; {score:.4f}</figcaption></figure>"
        )
    return f'<div class="row">{query}{"".join(figures)}</div>'


class _Photos:
    """Photos of a store as small JPEGs within a page, each read once."""

    def __init__(self, store: FeatureStore) -> None:
        self.store, self.shown, self.missing = store, 0, 0
        self.tag = cache(self._tag)

    def _tag(self, row: int) -> str:
        try:
            image_SS3 = read_image(Path(self.store.images[row]), SIDE)
        except Exception:  # a broken file can make Pillow raise nearly anything
            self.missing += 1
            return '<span class="gone">photo not here</span>'
        self.shown += 1
        jpeg = io.BytesIO()
        Image.fromarray(image_SS3).save(jpeg, "JPEG", quality=QUALITY)
        words = html.escape(self.store.titles[row])
        return f'<img alt="{words}" src="data:image/jpeg;base64,{base64.b64encode(jpeg.getvalue()).decode()}">'
