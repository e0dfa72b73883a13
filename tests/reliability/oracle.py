"""FashionBERT's pre-training step, with queries and a contrastive loss or without, written once more, plainly, in
float64: no packing tricks, no operator of ours, one process with the whole global batch, plain gradient descent.

Shapes: as in objectives/pretraining.py; S sequences (pairs and queries), L rows of one, N heads, E = H / N.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F

from fashionbert_fast.data.batch import Batch
from fashionbert_fast.kernels.adaptive_loss import adaptive_loss_reference, closed_form_weights_reference
from fashionbert_fast.kernels.min_norm_weights import min_norm_weights_reference
from fashionbert_fast.model.config import FashionBertConfig, QueryLoss

Weights = dict[str, torch.Tensor]


def _linear(x: torch.Tensor, w: Weights, name: str) -> torch.Tensor:
    return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))


def _norm(x: torch.Tensor, w: Weights, name: str, eps: float) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps)


def hidden_states(w: Weights, batch: Batch, config: FashionBertConfig) -> torch.Tensor:
    """(T, H): joint last hidden states."""
    inputs, eps = batch.inputs, config.layer_norm_eps
    segment_KH = w["text_embeddings.segment.weight"]
    segment_N = torch.zeros_like(inputs.input_id_N) if inputs.segment_N is None else inputs.segment_N
    text_NH = w["text_embeddings.word.weight"][inputs.input_id_N]
    text_NH = text_NH + w["text_embeddings.position.weight"][inputs.position_N] + segment_KH[segment_N]
    features_BPD = inputs.features_IPD.double()[inputs.image_index_B]
    features_BPD = features_BPD.masked_fill(inputs.patch_mask_BP[..., None], 0.0)
    patch_BPH = _linear(features_BPD, w, "patch_embeddings.projection")
    patch_BPH = patch_BPH + w["patch_embeddings.position.weight"] + segment_KH[1]
    patch_row_BP = inputs.patch_row_B[:, None] + torch.arange(config.patches)
    joint_TH = text_NH.new_zeros(inputs.rows, text_NH.shape[1])
    joint_TH = joint_TH.index_put((inputs.text_row_N,), _norm(text_NH, w, "text_embeddings.norm", eps))
    joint_TH = joint_TH.index_put((patch_row_BP,), _norm(patch_BPH, w, "patch_embeddings.norm", eps))
    ends = inputs.cu_seqlens_S1.tolist()
    pairs = [joint_TH[first:last] for first, last in pairwise(ends)]
    for layer in range(config.num_hidden_layers):
        pairs = [_layer(pair_LH, w, f"encoder.layers.{layer}", config) for pair_LH in pairs]
    return torch.cat([*pairs, joint_TH[ends[-1] :]])  # the fill as it came: nobody reads it


def _layer(x_LH: torch.Tensor, w: Weights, name: str, config: FashionBertConfig) -> torch.Tensor:
    query, key, value = (
        part.view(len(x_LH), config.num_attention_heads, x_LH.shape[1] // config.num_attention_heads).transpose(0, 1)
        for part in _linear(x_LH, w, f"{name}.qkv").chunk(3, dim=1)
    )
    scores_NLL = query @ key.transpose(1, 2) / query.shape[-1] ** 0.5
    context_LH = (scores_NLL.softmax(-1) @ value).transpose(0, 1).reshape(x_LH.shape)
    attended_LH = _linear(context_LH, w, f"{name}.attention_output")
    x_LH = _norm(x_LH + attended_LH, w, f"{name}.attention_norm", config.layer_norm_eps)
    fed_LH = _linear(F.gelu(_linear(x_LH, w, f"{name}.feed_forward")), w, f"{name}.feed_forward_output")
    return _norm(x_LH + fed_LH, w, f"{name}.feed_forward_norm", config.layer_norm_eps)


def task_sums(w: Weights, hidden_TH: torch.Tensor, batch: Batch, config: FashionBertConfig) -> torch.Tensor:
    """(3,): sums of the row losses. The decoder of words is the word embedding."""
    targets = batch.targets
    words_MH = _norm(F.gelu(_linear(hidden_TH[targets.mlm_row_M], w, "mlm_head.dense")), w, "mlm_head.norm",
                     config.layer_norm_eps)  # fmt: skip
    logits_MV = words_MH @ w["text_embeddings.word.weight"].T + w["mlm_head.bias"]
    mlm = F.cross_entropy(logits_MV, targets.mlm_label_M, reduction="sum")
    pooled_BH = torch.tanh(_linear(hidden_TH[batch.inputs.cls_row_B], w, "tia_head.pooler"))
    if config.alignment_head == "pooled":
        pooled_BH = torch.stack([
            _both_sides(w, pooled_H, hidden_TH[first:last], config.patches)
            for pooled_H, (first, last) in zip(pooled_BH, pairwise(batch.inputs.cu_seqlens_S1.tolist()), strict=False)
        ])  # fmt: skip
    tia = F.cross_entropy(_linear(pooled_BH, w, "tia_head.classifier"), targets.tia_label_B, reduction="sum")
    feature_KD = batch.inputs.features_IPD.double().flatten(0, 1)[targets.mpm_target_K]
    predicted_KD = _linear(hidden_TH[targets.mpm_row_K], w, "mpm_head.projection")
    if config.patch_objective == "selfie":
        mpm = _matched(predicted_KD, feature_KD, targets.mpm_row_K, batch.inputs.patch_row_B)
    else:
        target_KD = feature_KD.softmax(1)
        mpm = (target_KD * (target_KD.log() - predicted_KD.log_softmax(1))).sum()
    return torch.stack([mlm, tia, mpm])


def _matched(
    predicted_KD: torch.Tensor, feature_KD: torch.Tensor, row_K: torch.Tensor, patch_row_B: torch.Tensor
) -> torch.Tensor:  # fmt: skip
    """Selfie's loss, a masked patch after another."""
    pair_K, loss = [int((patch_row_B <= row).sum()) for row in row_K], predicted_KD.new_zeros(())
    for k, pair in enumerate(pair_K):
        others = [j for j in range(len(pair_K)) if pair_K[j] == pair
                  and (j == k or F.cosine_similarity(feature_KD[j], feature_KD[k], dim=0) <= 0.99)]  # fmt: skip
        scores = feature_KD[others] @ predicted_KD[k] / feature_KD.shape[1] ** 0.5
        loss = loss + F.cross_entropy(scores, torch.tensor(others.index(k)))
    return loss


def _both_sides(w: Weights, pooled_H: torch.Tensor, pair_LH: torch.Tensor, patches: int) -> torch.Tensor:
    title_H, photo_H = pair_LH[:-patches].mean(0), pair_LH[-patches:].mean(0)
    read = torch.cat([pooled_H, title_H, photo_H, title_H * photo_H, (title_H - photo_H).abs()])
    return F.gelu(_linear(read, w, "tia_head.dense"))


def _vectors(w: Weights, hidden_TH: torch.Tensor, batch: Batch) -> list[torch.Tensor]:
    """Of each sequence; NaN, or what nobody reads, where it is empty."""
    inputs, ends = batch.inputs, list(pairwise(batch.inputs.cu_seqlens_S1.tolist()))
    means = [hidden_TH[first:last].mean(0) for first, last in ends]
    if "itc_head.projection.weight" not in w:
        return [F.normalize(mean_H, dim=0) for mean_H in means]
    words_NH = w["text_embeddings.word.weight"].detach()[inputs.input_id_N]
    found = []
    for mean_H, (first, last) in zip(means, ends, strict=True):
        core_E, tower_E = _linear(mean_H, w, "itc_head.projection"), 0.0
        own_N = (inputs.text_row_N >= first) & (inputs.text_row_N < last)
        if own_N.any():
            word_H = _norm(words_NH[own_N].mean(0), w, "itc_head.word_tower.0", 1e-5)
            word_F = F.gelu(_linear(word_H, w, "itc_head.word_tower.1"))
            tower_E = tower_E + _linear(word_F, w, "itc_head.word_tower.4")
        for photo in ((inputs.patch_row_B >= first) & (inputs.patch_row_B < last)).nonzero().flatten().tolist():
            patches_PD = inputs.features_IPD.double()[inputs.image_index_B[photo]]
            patch_D = patches_PD[~inputs.patch_mask_BP[photo]].mean(0)
            patch_F = F.gelu(_linear(patch_D, w, "itc_head.patch_tower.0"))
            tower_E = tower_E + _linear(patch_F, w, "itc_head.patch_tower.3")
        tower_E = torch.zeros_like(core_E) + tower_E
        found.append(torch.cat([F.normalize(core_E, dim=0), F.normalize(tower_E, dim=0)]) / 2**0.5)
    return found


def contrastive_sum(w: Weights, hidden_TH: torch.Tensor, batch: Batch) -> torch.Tensor:
    """(): the sum of the products' losses, half of it of titles that look for photos, half the other way."""
    assert batch.contrastive is not None
    live_C, wrong_CG = batch.contrastive.live_C, batch.contrastive.wrong_CG
    vectors, C = _vectors(w, hidden_TH, batch), len(live_C)
    titles, photos = vectors[-2 * C : -C], vectors[-C:]
    total, E = hidden_TH.new_zeros(()), len(titles[0]) // 2
    for half, scale in enumerate(w["itc_head.scale.log_scale"].exp()):
        part = slice(half * E, (half + 1) * E)
        of_titles, of_photos = ([F.normalize(vector[part], dim=0) for vector in side] for side in (titles, photos))
        for slot in live_C.nonzero().flatten().tolist():
            for own, others in ((of_titles[slot], of_photos), (of_photos[slot], of_titles)):
                right = (scale * own @ others[slot]).exp()
                wrong = [(scale * own @ others[other]).exp() for other in wrong_CG[slot].nonzero().flatten().tolist()]
                total = total - (right / (right + sum(wrong))).log() / 4
    return total


def query_sum(w: Weights, hidden_TH: torch.Tensor, batch: Batch, task: QueryLoss) -> torch.Tensor:
    """(): the sum of the queries' losses."""
    assert batch.queries is not None
    B, total, vectors = len(batch.targets.tia_label_B), hidden_TH.new_zeros(()), _vectors(w, hidden_TH, batch)
    for slot in batch.queries.asks_C.nonzero().flatten().tolist():
        cosines = [vectors[B + slot] @ vectors[item] for item in range(B)]
        right = (task.scale * (cosines[slot] - task.margin)).exp()
        wrong = [(task.scale * cosines[item]).exp() for item in batch.queries.wrong_CG[slot].nonzero().flatten()]
        total = total - (right / (right + sum(wrong))).log()
    return total


def gradients(
    w: Weights, batches: Sequence[Batch], config: FashionBertConfig, task: QueryLoss | None = None,
) -> Weights:  # fmt: skip
    """Of one optimizer step, whose micro-batches hold all ranks' pairs: the mean over them, each by its own weights;
    with the queries' and the contrastive loss, where there are any."""
    counts_T = torch.stack([batch.targets.counts_T.double() for batch in batches]).sum(0).clamp_min(1)
    total = {name: torch.zeros_like(weight) for name, weight in w.items()}
    for batch in batches:
        hidden_TH = hidden_states(w, batch, config)
        leaf_TH = hidden_TH.detach().requires_grad_()
        losses_T = task_sums(w, leaf_TH, batch, config) * len(batches) / counts_T
        if batch.contrastive is not None:
            products = sum(int(each.contrastive.live_C.sum()) for each in batches if each.contrastive is not None)
            contrastive = contrastive_sum(w, leaf_TH, batch) * len(batches) / products
            losses_T = torch.cat([losses_T, contrastive[None]])
        if len(batch.targets.tia_label_B):
            at_hidden_TH, of_heads = _weighted(w, leaf_TH, losses_T, config)
        else:
            nothing = torch.zeros_like(leaf_TH), [None] * len(w)
            at_hidden_TH, of_heads = _added(losses_T[-1], w, leaf_TH, *nothing)
        if task is not None:
            asked = sum(int(batch.queries.asks_C.sum()) for batch in batches if batch.queries is not None)
            loss = task.weight * query_sum(w, leaf_TH, batch, task) * len(batches) / max(1, asked)
            at_hidden_TH, of_heads = _added(loss, w, leaf_TH, at_hidden_TH, of_heads)
        shared = torch.autograd.grad(hidden_TH, list(w.values()), at_hidden_TH, allow_unused=True)
        for name, *parts in zip(w, shared, of_heads, strict=True):
            for part in parts:
                if part is not None:
                    total[name] += part / len(batches)
    return total


def _added(loss: torch.Tensor, w: Weights, leaf_TH: torch.Tensor, at_hidden_TH: torch.Tensor, of_heads: list):
    """The gradients with those of one more loss."""
    if not loss.requires_grad:
        return at_hidden_TH, of_heads
    own_TH, *own = torch.autograd.grad(loss, [leaf_TH, *w.values()], allow_unused=True)
    both = [new if old is None else old if new is None else old + new for old, new in zip(of_heads, own, strict=True)]
    return at_hidden_TH + own_TH, both


def _weighted(w: Weights, leaf_TH: torch.Tensor, losses_T: torch.Tensor, config: FashionBertConfig):
    """What goes back into the encoder, and what the heads get, None for others."""
    weighting = config.weighting
    factors = [*weighting.preference, config.contrastive_weight][: len(losses_T)]
    preference_T = torch.tensor(factors, dtype=torch.float64)
    leaves = [leaf_TH, *w.values()]
    if weighting.method in ("loss", "fixed"):
        loss = (preference_T * losses_T).sum()
        if weighting.method == "loss":
            loss, _ = adaptive_loss_reference(preference_T * losses_T, alpha=weighting.alpha)
        at_hidden_TH, *of_heads = torch.autograd.grad(loss, leaves, allow_unused=True)
        return at_hidden_TH, of_heads
    own = [torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True) for loss in preference_T * losses_T]
    signals = [gradient.flatten() for gradient, *_ in own]
    live = [t for t, signal in enumerate(signals) if signal.any()]
    gram_nn = torch.stack([signals[t] for t in live]) @ torch.stack([signals[t] for t in live]).T
    if weighting.method == "min_norm":
        solved = min_norm_weights_reference(gram_nn)
    else:
        alpha = weighting.alpha * len(signals) / len(live)
        solved = closed_form_weights_reference(gram_nn.diagonal().sqrt(), alpha)
    at_hidden_TH = sum(weight * own[t][0] for weight, t in zip(solved, live, strict=True))
    of_heads = [
        None if all(part is None for part in parts) else sum(part for part in parts if part is not None)
        for parts in zip(*(rest for _, *rest in own), strict=True)
    ]
    return at_hidden_TH, of_heads


def descend(
    start: Weights, steps: Sequence[Sequence[Batch]], config: FashionBertConfig, lr: float,
    task: QueryLoss | None = None,
) -> Weights:  # fmt: skip
    """The weights after these steps of gradient descent, float64."""
    w = {name: weight.double().requires_grad_() for name, weight in start.items()}
    for batches in steps:
        found = gradients(w, batches, config, task)
        w = {name: (weight - lr * found[name]).detach().requires_grad_() for name, weight in w.items()}
    return {name: weight.detach() for name, weight in w.items()}
