"""Words that look for regions, or regions for words, before they are compared.

SCAN (Lee et al., Stacked Cross Attention for Image-Text Matching, ECCV 2018; the released code, feature normalisation
"clipped_l2norm"). Words w_l and regions v_r have length 1, s_lr = w_l . v_r. Text to image:

    a_lr = LeakyReLU_0.1(s_lr), divided by its length over the words l
    p_lr = softmax over r of smooth * a_lr,   u_l = sum_r p_lr v_r
    score = mean over l of cos(w_l, u_l), or log(sum over l of exp(lse * cos)) / lse

and image to text the same with words and regions exchanged. No u is needed: w . u = sum_r p_lr s_lr and
|u|^2 = p_l G p_l' with G = V V'.

PFAN (Wang et al., Position Focused Attention Network for Image-Text Matching, IJCAI 2019) gives each region, beside its
feature, a position: of the 16 x 16 blocks that the photo is cut into the 15 that the region overlaps most have a vector
e each, and the position is their mean by the weights softmax(overlap * softmax(tanh(q . e))), q a map of the feature,
as in the released code. Its regions are boxes of a detector; with those of a fixed grid the overlaps are constants, and
it is little more than a learned position. The released code adds half the mean of the largest attention to a score,
which the paper has not: option ``attention_bonus``, 0 by default.

Titles are read by a BERT rather than a GRU, photos by patches of a grid, averaged to at most 4 x 4 regions.
Trained by VSE++'s hinge, the first epoch on the sum.

Shapes: B titles, C photos, n rows asked for, K pairs, L words, R regions, E width, Q what asks, X what is asked (words
or regions, both), G blocks.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from fashionbert_fast.baselines.contrastive import MARGIN, TRAINED_LAYERS, hinge, wrong_pairs
from fashionbert_fast.baselines.fitting import Budget, Training, Validation
from fashionbert_fast.baselines.inputs import Standardise, State, TitleEncoder, patches, standardised_patches
from fashionbert_fast.baselines.system import Baseline
from fashionbert_fast.features.store import FeatureStore

WIDTH, SIDE = 256, 4  # regions a side, at most
SMOOTH = {"t2i": 9.0, "i2t": 4.0}  # as released
LSE = 6.0
BLOCKS, OVERLAPPED, POSITION = (
    16,
    15,
    200,
)  # PFAN: blocks a side, how many of them a region looks at, size of a position


def cross_match(
    similarity_QX: torch.Tensor, gram_XX: torch.Tensor, smooth: float, *, query_live_Q: torch.Tensor | None = None,
    context_live_X: torch.Tensor | None = None, aggregate: str = "mean", bonus: float = 0.0,
) -> torch.Tensor:  # fmt: skip
    """SCAN's score (...) of what asks against what is asked.

    similarity_QX: (..., Q, X), of unit vectors. gram_XX: (..., X, X), of those that are asked with one another.
    query_live_Q, context_live_X: (..., Q) and (..., X), False at padding; None: there is none. All broadcast.
    """
    if query_live_Q is not None:
        similarity_QX = similarity_QX.masked_fill(~query_live_Q[..., None], 0.0)
    clipped_QX = F.leaky_relu(similarity_QX, 0.1)
    logits_QX = smooth * clipped_QX / (torch.linalg.vector_norm(clipped_QX, dim=-2, keepdim=True) + 1e-8)
    if context_live_X is not None:
        logits_QX = logits_QX.masked_fill(~context_live_X[..., None, :], -math.inf)
    p_QX = logits_QX.softmax(-1)
    met_Q = (p_QX * similarity_QX).sum(-1)
    length_Q = ((p_QX @ gram_XX) * p_QX).sum(-1).clamp(min=1e-12).sqrt()
    cosine_Q = met_Q / length_Q.clamp(min=1e-8)
    live_Q = torch.ones_like(cosine_Q, dtype=torch.bool) if query_live_Q is None else query_live_Q.expand_as(cosine_Q)
    if aggregate == "lse":
        return (LSE * cosine_Q).masked_fill(~live_Q, -math.inf).logsumexp(-1) / LSE
    score_Q = cosine_Q + bonus * p_QX.amax(-1)
    return (score_Q * live_Q).sum(-1) / live_Q.sum(-1)


def overlaps(side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each of side x side regions the blocks that it overlaps most, (R, OVERLAPPED), and which share of a block it
    covers, float32 of the same shape; of equal shares the earlier block."""
    edge_S = torch.arange(side + 1) / side
    edge_B = torch.arange(BLOCKS + 1) / BLOCKS
    low_SB = torch.maximum(edge_S[:-1, None], edge_B[:-1])
    along_SB = (torch.minimum(edge_S[1:, None], edge_B[1:]) - low_SB).clamp(min=0) * BLOCKS
    share_RG = torch.einsum("ib,jc->ijbc", along_SB, along_SB).reshape(side**2, BLOCKS**2)
    order_RG = share_RG.argsort(dim=1, descending=True, stable=True)[:, :OVERLAPPED]
    return order_RG, share_RG.gather(1, order_RG)


class Positions(nn.Module):
    """PFAN's: of each region of a grid by its feature."""

    def __init__(self, features: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.block_GE = nn.Parameter(torch.randn(BLOCKS**2, POSITION) * 0.1)
        self.query = nn.Linear(features, POSITION)

    def forward(self, features_nRD: torch.Tensor) -> torch.Tensor:
        """(n, R, POSITION)."""
        block_RX, share_RX = (part.to(features_nRD.device) for part in overlaps(self.side))
        block_RXE = self.block_GE[block_RX]
        known_nRX = torch.einsum("nre,rxe->nrx", self.query(features_nRD), block_RXE).tanh().softmax(-1)
        return torch.einsum("nrx,rxe->nre", (known_nRX * share_RX).softmax(-1), block_RXE)


class Scan(Baseline):
    """SCAN, or PFAN where there are positions."""

    name = "scan-t2i"
    direction, positions = "t2i", False
    pairs_at_once = 1 << 10

    def __init__(
        self, *, text: dict[str, Any], grid: int, features: int, aggregate: str = "mean", attention_bonus: float = 0.0
    ) -> None:
        super().__init__(text=text, grid=grid, features=features, aggregate=aggregate, attention_bonus=attention_bonus)
        self.grid, self.side = grid, min(grid, SIDE)
        self.encoder, self.scale = TitleEncoder(**text), Standardise(features)
        self.place = Positions(features, self.side) if self.positions else None
        self.word_output = nn.Linear(self.encoder.width, WIDTH)
        self.region_output = nn.Linear(features + POSITION * self.positions, WIDTH)

    @property
    def text(self) -> TitleEncoder:
        return self.encoder

    def words(self, rows: np.ndarray, most: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Unit vectors (n, L, E) and where there are any, bool (n, L)."""
        hidden_nLH, live_nL = self.encoder.words(rows, most)
        return F.normalize(self.word_output(hidden_nLH), dim=-1), live_nL

    def regions(self, rows: np.ndarray) -> torch.Tensor:
        """Unit vectors (n, R, E)."""
        scaled_nPD = self.scale(patches(self.store, rows).to(self.word_output.weight))
        map_nDSS = F.adaptive_avg_pool2d(scaled_nPD.mT.unflatten(2, (self.grid, self.grid)), self.side)
        features_nRD = map_nDSS.flatten(2).mT
        if self.place is not None:
            features_nRD = torch.cat([features_nRD, self.place(features_nRD)], dim=-1)
        return F.normalize(self.region_output(features_nRD), dim=-1)

    def titles(self, rows: np.ndarray) -> State:
        lengths_N = np.diff(self.encoder.titles.offsets)
        words_nLE, live_nL = self.words(rows, int(lengths_N.max()))
        return words_nLE, live_nL

    def photos(self, rows: np.ndarray) -> State:
        return (self.regions(rows),)

    def match(self, similarity_LR: torch.Tensor, words: torch.Tensor, live: torch.Tensor, regions: torch.Tensor):
        """`cross_match` in the system's direction. similarity_LR: (..., L, R); the others broadcast against it."""
        how = {"aggregate": self.options["aggregate"], "bonus": self.options["attention_bonus"]}
        smooth = SMOOTH[self.direction]
        if self.direction == "t2i":
            return cross_match(similarity_LR, regions @ regions.mT, smooth, query_live_Q=live, **how)
        return cross_match(similarity_LR.mT, words @ words.mT, smooth, context_live_X=live, **how)

    def meet(self, titles: State, photos: State) -> torch.Tensor:
        (words_KLE, live_KL), (regions_KRE,) = titles, photos
        return self.match(words_KLE @ regions_KRE.mT, words_KLE, live_KL, regions_KRE).double()

    def loss(self, rows: np.ndarray, epoch: int) -> torch.Tensor:
        """VSE++'s, of a batch of products."""
        (words_BLE, live_BL), regions_CRE = self.words(rows), self.regions(rows)
        similarity_BCLR = torch.einsum("ble,cre->bclr", words_BLE, regions_CRE)
        score_BC = self.match(similarity_BCLR, words_BLE[:, None], live_BL[:, None], regions_CRE[None])
        return hinge(score_BC, wrong_pairs(self.store, rows, score_BC.device), MARGIN, hardest=epoch > 0)

    @classmethod
    def fit(
        cls, store: FeatureStore, rows: np.ndarray, validation: Validation, *, seed: int, budget: Budget,
        core: str | Path,
    ) -> Self:  # fmt: skip
        torch.manual_seed(seed)
        encoder = TitleEncoder.from_bert(core, TRAINED_LAYERS)
        system = cls(text=encoder.options, grid=store.manifest.grid, features=store.manifest.feature_size)
        system.encoder, system.scale = encoder, standardised_patches(store, rows)
        system.open(store)
        encoder.hold(np.concatenate([rows, validation.rows]))
        system.fitted = Training(system, system.loss, rows, validation, seed, budget, epochs=8, batch_size=64).run()
        return system


class ScanImageToText(Scan):
    name = "scan-i2t"
    direction = "i2t"


class Pfan(Scan):
    name = "pfan-t2i"
    positions = True


class PfanImageToText(ScanImageToText):
    name = "pfan-i2t"
    positions = True
