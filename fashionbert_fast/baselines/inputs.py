"""What the systems read of a store: titles as tf-idf + LSA and through a BERT, photos as patches and their mean.

LSA: Deerwester et al., Indexing by Latent Semantic Analysis, 1990. tf-idf as scikit-learn's `TfidfVectorizer` has it
with ``sublinear_tf``: (1 + ln tf) (1 + ln((1 + n) / (1 + df))), each text to length 1.

Shapes: N rows of a store, n rows asked for, V terms, K dimensions of LSA, T tokens of all titles, S1 = n + 1 offsets,
L tokens of the longest title, H hidden, P patches, D patch feature, F input features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from fashionbert_fast.data.config import DataConfig
from fashionbert_fast.data.pairs import collate_texts
from fashionbert_fast.data.titles import TokenizedTitles
from fashionbert_fast.data.tokenizer import load_tokenizer
from fashionbert_fast.features.store import FeatureStore
from fashionbert_fast.kernels.dropout import draw_seed
from fashionbert_fast.model.config import FashionBertConfig
from fashionbert_fast.model.directories import CORE_FIELDS, resolve_core
from fashionbert_fast.model.encoder import Packing
from fashionbert_fast.model.fashionbert import FashionBert, segment_sums

LSA_DIMENSIONS = 256
AT_ONCE = 256  # rows of a store that are read or encoded together
State = tuple[torch.Tensor, ...]  # of n titles or photos: tensors whose first axis is n


class Held:
    """States of rows, computed when they are first needed."""

    def __init__(self, encode: Callable[[np.ndarray], State], rows: int) -> None:
        self.encode, self.place_N = encode, np.full(rows, -1)
        self.held: State = ()

    def __call__(self, rows: np.ndarray) -> State:
        self.need(rows)
        return self.states(rows)

    def need(self, rows: np.ndarray) -> np.ndarray:
        """Have the states of ``rows``; which of them were computed now."""
        missing = np.unique(rows[self.place_N[rows] < 0])
        if len(missing) == 0:
            return missing
        parts = [self.encode(missing[start : start + AT_ONCE]) for start in range(0, len(missing), AT_ONCE)]
        self.place_N[missing] = (self.place_N >= 0).sum() + np.arange(len(missing))
        all_parts = [self.held, *parts] if self.held else parts
        self.held = tuple(torch.cat(tensors) for tensors in zip(*all_parts, strict=True))
        return missing

    def states(self, rows: np.ndarray) -> State:
        """Of rows that were needed."""
        place = torch.from_numpy(self.place_N[rows])
        return tuple(tensor[place.to(tensor.device)] for tensor in self.held)


class Standardise(nn.Module):
    """(x - mean) / deviation of the training rows; a feature that never varies is only centred."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.mean_F: torch.Tensor
        self.deviation_F: torch.Tensor
        self.register_buffer("mean_F", torch.zeros(features))
        self.register_buffer("deviation_F", torch.ones(features))

    def fit(self, x_NF: torch.Tensor) -> Self:
        return self.set(x_NF.double().mean(0), x_NF.double().var(0, correction=0))

    def set(self, mean_F: torch.Tensor, variance_F: torch.Tensor) -> Self:
        self.mean_F.copy_(mean_F)
        self.deviation_F.copy_(torch.where(variance_F > 1e-12, variance_F.sqrt(), 1.0))
        return self

    def forward(self, x_NF: torch.Tensor) -> torch.Tensor:
        return (x_NF - self.mean_F) / self.deviation_F


# Titles --------------------------------------------------------------------------------------------------------------
class Lsa(nn.Module):
    """tf-idf of words, projected on their first K singular vectors; the terms are options, the numbers buffers."""

    def __init__(self, terms: Sequence[str], dimensions: int) -> None:
        super().__init__()
        self.terms = list(terms)
        self.idf_V: torch.Tensor
        self.components_KV: torch.Tensor
        self.register_buffer("idf_V", torch.ones(len(self.terms)))
        self.register_buffer("components_KV", torch.zeros(dimensions, len(self.terms)))

    @classmethod
    def fit(cls, texts: Sequence[str], seed: int, dimensions: int = LSA_DIMENSIONS) -> Self:
        """On training titles; words of a single title are left out where others are left."""
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import TfidfVectorizer

        try:
            vectorizer = TfidfVectorizer(sublinear_tf=True, min_df=2)
            tfidf_NV = vectorizer.fit_transform(texts)
        except ValueError:  # no word is in two titles
            vectorizer = TfidfVectorizer(sublinear_tf=True, token_pattern=r"(?u)\S+")
            tfidf_NV = vectorizer.fit_transform(texts)
        terms = vectorizer.get_feature_names_out().tolist()
        dimensions = max(1, min(dimensions, len(terms) - 1, len(texts) - 1))
        lsa = cls(terms, dimensions)
        lsa.idf_V.copy_(torch.from_numpy(vectorizer.idf_))
        if len(terms) > 1:
            svd = TruncatedSVD(dimensions, random_state=seed).fit(tfidf_NV)
            lsa.components_KV.copy_(torch.from_numpy(svd.components_))
        return lsa

    def tfidf(self, texts: Sequence[str]):
        """Of each text, a sparse (n, V) float64 matrix."""
        from sklearn.feature_extraction.text import CountVectorizer
        from sklearn.preprocessing import normalize

        count_nV = CountVectorizer(vocabulary=self.terms).transform(texts).astype(np.float64)
        count_nV.data = 1 + np.log(count_nV.data)
        return normalize(count_nV.multiply(self.idf_V.double().numpy()).tocsr())

    def forward(self, texts: Sequence[str]) -> torch.Tensor:
        """float32 (n, K) on the module's device."""
        found_nK = self.tfidf(texts) @ self.components_KV.double().numpy().T
        return torch.from_numpy(found_nK).to(self.idf_V)


class TitleEncoder(nn.Module):
    """A BERT over the titles of a store, its lower layers frozen, their states of training titles held in memory.

    core: fields of `FashionBertConfig`. trained: how many of the last layers are trained.
    """

    def __init__(self, core: dict[str, Any], trained: int, max_text_tokens: int) -> None:
        super().__init__()
        self.bert = FashionBert(FashionBertConfig(**core))
        self.trained, self.max_text_tokens = min(trained, len(self.bert.encoder.layers)), max_text_tokens
        self.tokenizer: Any = None
        self._held: tuple[np.ndarray, np.ndarray, torch.Tensor] | None = None

    @classmethod
    def from_bert(cls, core: str | Path, trained: int = 0) -> Self:
        """From a BERT checkpoint directory, hub id or alias (`resolve_core`), with its tokenizer."""
        directory = resolve_core(core)
        bert = FashionBert.from_bert(directory, patch_feature_size=1, patches=1)
        c = bert.config
        fields = {name: getattr(c, name) for name in CORE_FIELDS} | {"patches": 1, "patch_feature_size": 1}
        with torch.device("meta"):
            encoder = cls(fields, trained, min(DataConfig.max_text_tokens, c.max_position_embeddings))
        encoder.bert, encoder.tokenizer = bert, load_tokenizer(directory)
        for parameter in bert.parameters():
            parameter.requires_grad_(False)
        for layer in bert.encoder.layers[len(bert.encoder.layers) - encoder.trained :]:
            layer.requires_grad_(True)
        return encoder

    @property
    def options(self) -> dict[str, Any]:
        """What `TitleEncoder(**options)` needs; the tokenizer is files of its own."""
        c = self.bert.config
        core = {name: getattr(c, name) for name in (*CORE_FIELDS, "patches", "patch_feature_size")}
        return {"core": core, "trained": self.trained, "max_text_tokens": self.max_text_tokens}

    @property
    def width(self) -> int:
        return self.bert.config.hidden_size

    @property
    def device(self) -> torch.device:
        return self.bert.text_embeddings.word.weight.device

    def open(self, store: FeatureStore) -> None:
        """Read titles of ``store`` from now on."""
        self.titles, self._held = TokenizedTitles(store.titles, self.tokenizer, self.max_text_tokens), None

    def hold(self, rows: np.ndarray) -> None:
        """Keep what the frozen layers make of those titles."""
        parts = [self._lower(rows[start : start + AT_ONCE]).cpu() for start in range(0, len(rows), AT_ONCE)]
        place_N = np.full(len(self.titles.offsets) - 1, -1)
        place_N[rows] = np.arange(len(rows))
        self._held = place_N, np.append(0, np.cumsum(self.titles.lengths(rows))), torch.cat(parts)

    @torch.no_grad()
    def _lower(self, rows: np.ndarray) -> torch.Tensor:
        """(T, H) after the frozen layers, nothing dropped."""
        was_training = self.bert.training
        self.bert.eval()
        texts = collate_texts(self.titles, rows, 1, 1).to(self.device)
        hidden_TH = self.bert.text_embeddings(texts.input_id_N, texts.position_N)
        packing = Packing(texts.cu_seqlens_S1, texts.max_seqlen)
        for layer in self.bert.encoder.layers[: len(self.bert.encoder.layers) - self.trained]:
            hidden_TH = layer(hidden_TH, packing)
        self.bert.train(was_training)
        return hidden_TH

    def hidden(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Last hidden states (T, H) of the titles, one after another, and their int32 offsets (S1,)."""
        hidden_TH, cu_seqlens_S1 = self._frozen(rows)
        seed = draw_seed(self.device) if self.training else None
        packing = Packing(cu_seqlens_S1, int(self.titles.lengths(rows).max()), seed)
        for layer in self.bert.encoder.layers[len(self.bert.encoder.layers) - self.trained :]:
            hidden_TH = layer(hidden_TH, packing)
        return hidden_TH, cu_seqlens_S1

    def _frozen(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """`hidden` as the frozen layers leave them."""
        lengths_n = self.titles.lengths(rows)
        cu_seqlens_S1 = torch.from_numpy(np.append(0, np.cumsum(lengths_n)).astype(np.int32)).to(self.device)
        if self._held is not None and (place_n := self._held[0][rows]).min() >= 0:
            first_n = self._held[1][place_n]
            row_T = np.arange(lengths_n.sum()) + np.repeat(first_n - np.cumsum(lengths_n) + lengths_n, lengths_n)
            return self._held[2][torch.from_numpy(row_T)].to(self.device), cu_seqlens_S1
        return self._lower(rows), cu_seqlens_S1

    def means(self, rows: np.ndarray) -> torch.Tensor:
        """(n, H) of length 1: the mean of each title's tokens."""
        return F.normalize(segment_sums(*self.hidden(rows)), dim=1)

    def words(self, rows: np.ndarray, most: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states (n, L, H), 0 at padding, and where there are tokens, bool (n, L). most: L, where it is not to
        be that of the longest title."""
        return self.padded(*self.hidden(rows), most)

    def lower_words(self, rows: np.ndarray, most: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """`words` as the frozen layers leave them."""
        return self.padded(*self._frozen(rows), most)

    def padded(
        self, hidden_TH: torch.Tensor, cu_seqlens_S1: torch.Tensor, most: int | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """States (T, H) of titles, one after another, as `words` has them."""
        lengths_n = cu_seqlens_S1.diff()
        live_nL = torch.arange(most or int(lengths_n.max()), device=self.device) < lengths_n[:, None]
        padded_nLH = hidden_TH.new_zeros(*live_nL.shape, hidden_TH.shape[1])
        return padded_nLH.masked_scatter(live_nL[..., None], hidden_TH), live_nL


# Photos --------------------------------------------------------------------------------------------------------------
def patches(store: FeatureStore, rows: np.ndarray) -> torch.Tensor:
    """float32 (n, P, D)."""
    return store.features(rows).float()


def standardised_patches(store: FeatureStore, rows: np.ndarray) -> Standardise:
    """By mean and deviation over all patches of the rows, summed up in float64."""
    sums_2D = torch.zeros(2, store.manifest.feature_size, dtype=torch.float64)
    for start in range(0, len(rows), AT_ONCE):
        part_nPD = patches(store, rows[start : start + AT_ONCE]).double()
        sums_2D += torch.stack([part_nPD.sum((0, 1)), part_nPD.square().sum((0, 1))])
    mean_D, square_D = sums_2D / (len(rows) * store.manifest.patches)
    return Standardise(store.manifest.feature_size).set(mean_D, square_D - mean_D.square())


# Both, pooled --------------------------------------------------------------------------------------------------------
class Pooled(nn.Module):
    """A vector of each title, [LSA ; mean of the BERT's tokens], and of each photo, its mean patch; standardised."""

    def __init__(self, terms: Sequence[str], dimensions: int, titles: dict[str, Any], features: int) -> None:
        super().__init__()
        self.lsa, self.text = Lsa(terms, dimensions), TitleEncoder(**titles)
        self.title_scale = Standardise(dimensions + self.text.width)
        self.photo_scale = Standardise(features)

    @classmethod
    def fit(cls, store: FeatureStore, rows: np.ndarray, core: str | Path, seed: int) -> Self:
        """Statistics and LSA of the training rows ``rows``; the BERT is as it was pre-trained."""
        lsa = Lsa.fit([store.titles[row] for row in rows], seed)
        text = TitleEncoder.from_bert(core)
        with torch.device("meta"):
            pooled = cls(lsa.terms, len(lsa.components_KV), text.options, store.manifest.feature_size)
        pooled.lsa, pooled.text = lsa, text
        pooled.title_scale = Standardise(len(lsa.components_KV) + text.width)
        pooled.photo_scale = Standardise(store.manifest.feature_size)
        pooled.eval().open(store)
        pooled.title_scale.fit(pooled.titles(rows))
        pooled.photo_scale.fit(pooled.photos(rows))
        return pooled

    @property
    def options(self) -> dict[str, Any]:
        return {"terms": self.lsa.terms, "dimensions": len(self.lsa.components_KV), "titles": self.text.options,
                "features": len(self.photo_scale.mean_F)}  # fmt: skip

    def open(self, store: FeatureStore) -> None:
        """Read ``store`` from now on, every title and photo once."""
        self.text.open(store)

        def titles(rows: np.ndarray) -> State:
            lsa_nK = self.lsa([store.titles[row] for row in rows])
            return (torch.cat([lsa_nK, self.text.means(rows)], dim=1),)

        def photos(rows: np.ndarray) -> State:
            return (patches(store, rows).mean(1).to(self.photo_scale.mean_F),)

        self._titles, self._photos = Held(titles, len(store)), Held(photos, len(store))

    @torch.no_grad()
    def titles(self, rows: np.ndarray) -> torch.Tensor:
        """float32 (n, K + H)."""
        return self.title_scale(*self._titles(rows))

    @torch.no_grad()
    def photos(self, rows: np.ndarray) -> torch.Tensor:
        """float32 (n, D)."""
        return self.photo_scale(*self._photos(rows))


def cosine(title_KE: torch.Tensor, photo_KE: torch.Tensor) -> torch.Tensor:
    """float64 (K,): of each pair of vectors, 0 where one is 0."""
    return F.cosine_similarity(title_KE.double(), photo_KE.double(), dim=1)
