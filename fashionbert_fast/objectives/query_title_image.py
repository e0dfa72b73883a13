"""Pre-training with queries: beside the three tasks, a query finds its item among the items of all ranks.

An item is a title with its photo, as the three tasks have it, masks included; its vector and a query's are what
`FashionBert.vectors` gives, of the one encoder pass over both. The loss of a query of item i is an AM-softmax (Wang et
al., Additive Margin Softmax for Face Verification, 2018) over the items of the micro-batch on all ranks:

    -log( exp(s (cos_i - m)) / (exp(s (cos_i - m)) + sum over wrong items j of exp(s cos_j)) )

Items that the query is right for as well are in no sum (`data.queries`). The mean over queries, times a weight, is
added to what the three tasks come to by their own weights.

Shapes: B pairs, C slots of a rank's micro-batch, R ranks, G = R C items, S sequences, H hidden, E numbers of a vector,
T rows of the packed axis.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F

from fashionbert_fast.data.batch import Batch, QueryTargets, StepCounts
from fashionbert_fast.distributed import all_reduce_sum, gather_rows
from fashionbert_fast.model.config import QueryLoss
from fashionbert_fast.objectives.contrastive import softmax_loss
from fashionbert_fast.objectives.pretraining import FashionBertForPreTraining, FashionBertOutput
from fashionbert_fast.objectives.weighting import global_means

QUERIES = StepCounts._fields.index("queries")


class FashionBertForQueries(FashionBertForPreTraining):
    """FashionBERT with three segments, of titles, photos and queries, and vectors trained to meet.

    It has no weights but those of `FashionBertForPreTraining` and a segment of queries, which begins as that of titles
    where a model has two. ``query_loss`` may be set before training.

    >>> config = FashionBertConfig(vocab_size=100, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
    ...                            intermediate_size=32, type_vocab_size=3, patches=4, patch_feature_size=6)
    >>> FashionBertForQueries(config).query_segment
    2
    """

    segments = 3
    query_loss = QueryLoss()

    def forward(self, batch: Batch, counts: torch.Tensor | None = None, micro_batches: int = 1) -> FashionBertOutput:
        """As `FashionBertForPreTraining.forward`; of ``counts`` it reads the queries of the step as well. A batch
        without queries is one of the three tasks alone."""
        hidden_TH = self.encode(batch.inputs)
        output = self.losses(hidden_TH, batch, counts, micro_batches)
        if batch.queries is None:
            return output
        vectors_SE = self.pooled_vectors(hidden_TH, batch.inputs)
        if batch.contrastive is not None:  # whose sequences come last
            vectors_SE = vectors_SE[: len(vectors_SE) - 2 * len(batch.contrastive.live_C)]
        sums_2 = self._sums(vectors_SE, batch.queries)
        if counts is None:
            count = all_reduce_sum(batch.queries.asks_C.sum().float())
        else:
            count = counts[QUERIES]
        means_2 = global_means(sums_2, count.expand(2), micro_batches)
        return replace(output, loss=output.loss + self.query_loss.weight * means_2[0], query_2=means_2.detach())

    def _sums(self, vectors_SE: torch.Tensor, queries: QueryTargets) -> torch.Tensor:
        """(2,) float32: this rank's sum of losses, and how many queries are nearer to their item than to any wrong."""
        C = len(queries.asks_C)
        pairs_BE, query_CE = vectors_SE.split([len(vectors_SE) - C, C])
        item_CE = F.pad(pairs_BE, (0, 0, 0, C - len(pairs_BE)))
        right_C = (query_CE * item_CE).sum(1)
        wrong_CG = (query_CE @ gather_rows(item_CE).T).masked_fill(~queries.wrong_CG, -math.inf)
        loss_C = am_softmax(right_C, wrong_CG, self.query_loss.scale, self.query_loss.margin)
        found_C = right_C.detach() > wrong_CG.detach().amax(1)
        return torch.stack([(loss_C * queries.asks_C).sum(), (found_C & queries.asks_C).sum().float()])


def am_softmax(right_C: torch.Tensor, wrong_CG: torch.Tensor, scale: float, margin: float) -> torch.Tensor:
    """(C,) losses of queries whose cosines to the right item are ``right_C`` and to wrong ones ``wrong_CG``, -inf where
    there is none."""
    right_C = scale * (right_C - margin)
    return softmax_loss(right_C, scale * wrong_CG)
