"""Breaks of the model: embeddings, encoder, heads, weighting, reading and writing of checkpoints."""

from __future__ import annotations

from benchmarks.mutants.mutant import Mutant

MODEL = "fashionbert_fast/model/"
BERT = ("tests/model/test_bert.py",)
STEP = ("tests/engine/test_step.py", "tests/engine/test_equivalence.py")
FIELDS = ("tests/test_every_field.py",)
PEERS = ("tests/benchmarks/test_peers.py::test_losses_and_gradients_agree",)
WEIGHTING = ("tests/objectives/test_weighting.py",)
TOKENIZER = ("tests/model/test_tokenizer.py",)
WARM = ("tests/engine/test_warm_start.py",)
CLS = ("tests/model/test_fashionbert.py",)
VECTORS = ("tests/model/test_vectors.py",)

MUTANTS = (
    Mutant(
        "images-have-the-texts-segment",
        MODEL + "embeddings.py",
        "TEXT_SEGMENT, IMAGE_SEGMENT, QUERY_SEGMENT = 0, 1, 2",
        "TEXT_SEGMENT, IMAGE_SEGMENT, QUERY_SEGMENT = 0, 0, 2",
        (*PEERS, *CLS),
    ),
    Mutant(
        "segments-change-places",
        MODEL + "embeddings.py",
        "TEXT_SEGMENT, IMAGE_SEGMENT, QUERY_SEGMENT = 0, 1, 2",
        "TEXT_SEGMENT, IMAGE_SEGMENT, QUERY_SEGMENT = 1, 0, 2",
        (*PEERS, *BERT),
    ),
    Mutant(
        "a-vector-takes-its-neighbours-row",
        MODEL + "fashionbert.py",
        "torch.bucketize(row_T, cu_seqlens_S1[1:], right=True)",
        "torch.bucketize(row_T, cu_seqlens_S1[1:], right=False)",
        VECTORS,
    ),
    Mutant(
        "queries-have-the-titles-segment",
        MODEL + "embeddings.py",
        "else self.segment(segment_N)",
        "else self.segment(segment_N * 0)",
        VECTORS,
    ),
    Mutant(
        "position-table-off-by-one",
        MODEL + "embeddings.py",
        "self.position(position_N)",
        "self.position(position_N + 1)",
        (*PEERS, *BERT),
    ),
    Mutant(
        "text-embeddings-are-not-normalised",
        MODEL + "embeddings.py",
        "return self.dropout(self.norm(summed_NH))",
        "return self.dropout(summed_NH)",
        (*PEERS, *BERT),
    ),
    Mutant(
        "text-embeddings-do-not-drop",
        MODEL + "embeddings.py",
        "return self.dropout(self.norm(summed_NH))",
        "return self.norm(summed_NH)",
        FIELDS,
    ),
    Mutant(
        "patch-feature-dropout-at-the-hidden-rate",
        MODEL + "embeddings.py",
        "self.feature_dropout = config.patch_dropout_prob",
        "self.feature_dropout = config.hidden_dropout_prob",
        FIELDS,
    ),
    Mutant(
        "patches-do-not-drop",
        MODEL + "embeddings.py",
        "hidden_dropout=self.hidden_dropout if drops else 0.0",
        "hidden_dropout=0.0",
        FIELDS,
    ),
    Mutant(
        "one-dropout-stream-for-all-layers",
        MODEL + "encoder.py",
        "EncoderLayer(config, site=SITES_A_LAYER * i)",
        "EncoderLayer(config, site=0)",
        FIELDS,
    ),
    Mutant(
        "both-halves-of-a-layer-drop-alike",
        MODEL + "encoder.py",
        "self.feed_forward_norm, self.site + 2, packing",
        "self.feed_forward_norm, self.site + 1, packing",
        FIELDS,
    ),
    Mutant(
        "attention-drops-at-the-hidden-rate",
        MODEL + "encoder.py",
        "self.attention_dropout = config.attention_probs_dropout_prob",
        "self.attention_dropout = config.hidden_dropout_prob",
        FIELDS,
    ),
    Mutant(
        "layer-norm-with-torchs-eps",
        MODEL + "encoder.py",
        "self.feed_forward_norm = nn.LayerNorm(H, eps=config.layer_norm_eps)",
        "self.feed_forward_norm = nn.LayerNorm(H)",
        (*BERT, *PEERS),
    ),
    Mutant(
        "gelu-of-the-mlm-head-by-tanh",
        MODEL + "encoder.py",
        '"gelu": F.gelu,',
        '"gelu": functools.partial(F.gelu, approximate="tanh"),',
        (*BERT, *PEERS),
    ),
    Mutant(
        "feed-forward-forgets-its-bias",
        MODEL + "encoder.py",
        "return bias_gelu(inner_TF, self.feed_forward.bias)",
        "return bias_gelu(inner_TF)",
        (*PEERS, *BERT),
    ),
    Mutant(
        "cls-alone-sees-the-padding",
        MODEL + "encoder.py",
        "live_BS = place_S < lengths_B[:, None]",
        "live_BS = place_S <= lengths_B[:, None]",
        CLS,
    ),
    Mutant(
        "nothing-drops-unless-hidden-states-do",
        MODEL + "fashionbert.py",
        "drops = max(c.hidden_dropout_prob, c.attention_probs_dropout_prob, c.patch_dropout_prob) > 0",
        "drops = c.hidden_dropout_prob > 0",
        FIELDS,
    ),
    Mutant(
        "decoder-is-not-tied",
        "fashionbert_fast/objectives/pretraining.py",
        "self.mlm_head(mlm_MH, self.text_embeddings.word.weight, targets.mlm_label_M)",
        "self.mlm_head(mlm_MH, self.text_embeddings.word.weight.detach(), targets.mlm_label_M)",
        (*PEERS, *WEIGHTING),
    ),
    Mutant(
        "fresh-weights-at-a-fixed-scale",
        MODEL + "fashionbert.py",
        "std=self.config.initializer_range",
        "std=0.02",
        FIELDS,
    ),
    Mutant(
        "patch-loss-not-a-sum",
        MODEL + "heads.py",
        'features_RD, target_row_K, reduction="sum")',
        "features_RD, target_row_K)",
        (*PEERS, *WEIGHTING),
    ),
    Mutant(
        "pooler-without-tanh",
        MODEL + "heads.py",
        "return torch.tanh(self.pooler(cls_BH))",
        "return self.pooler(cls_BH)",
        (*PEERS, *BERT),
    ),
    Mutant(
        "alignment-head-does-not-drop",
        MODEL + "heads.py",
        "return self.classifier(self.dropout(self.pooled(cls_BH)))",
        "return self.classifier(self.pooled(cls_BH))",
        FIELDS,
    ),
    Mutant(
        "gradient-not-times-the-world-size",
        "fashionbert_fast/objectives/weighting.py",
        "return grad_T * ctx.scale_T * world_size(), None, None",
        "return grad_T * ctx.scale_T, None, None",
        STEP,
    ),
    Mutant(
        "losses-of-one-rank-alone",
        "fashionbert_fast/objectives/weighting.py",
        "return all_reduce_sum(sums_T.clone()) * ctx.scale_T",
        "return sums_T.clone() * ctx.scale_T",
        STEP,
    ),
    Mutant(
        "loss-sums-not-divided-by-global-counts",
        "fashionbert_fast/objectives/weighting.py",
        "ctx.scale_T = micro_batches / counts_T.clamp_min(1)",
        "ctx.scale_T = counts_T.new_ones(3)",
        (*PEERS, *WEIGHTING),
    ),
    Mutant(
        "micro-batches-not-counted",
        "fashionbert_fast/objectives/weighting.py",
        "ctx.scale_T = micro_batches / counts_T.clamp_min(1)",
        "ctx.scale_T = 1 / counts_T.clamp_min(1)",
        STEP,
    ),
    Mutant(
        "loss-scale-reaches-the-weights",
        "fashionbert_fast/objectives/weighting.py",
        "/ (report.cotangent.float() * world_size()) ** 2",
        "/ world_size() ** 2",
        WEIGHTING,
    ),
    Mutant(
        "preference-left-out-of-the-released-loss",
        "fashionbert_fast/objectives/weighting.py",
        "            preference_T * losses_T, alpha=self.weighting.alpha,",
        "            losses_T, alpha=self.weighting.alpha,",
        (*WEIGHTING, *FIELDS),
    ),
    Mutant(
        "key-and-value-change-places",
        MODEL + "checkpoint.py",
        '"attention.self.query", "attention.self.key", "attention.self.value"',
        '"attention.self.query", "attention.self.value", "attention.self.key"',
        BERT,
    ),
    Mutant(
        "norms-of-a-layer-change-places",
        MODEL + "checkpoint.py",
        '"attention_norm": "attention.output.LayerNorm"',
        '"attention_norm": "output.LayerNorm"',
        BERT,
    ),
    Mutant(
        "export-without-the-decoders-bias",
        MODEL + "checkpoint.py",
        '    names["mlm_head.bias"] = ["cls.predictions.bias"]\n',
        "",
        BERT,
    ),
    Mutant(
        "saved-features-manifest-is-not-read",
        MODEL + "checkpoint.py",
        'if (path / "patch_features.json").exists():',
        'if (path / "patch-features.json").exists():',
        BERT,
    ),
    Mutant(
        "a-tensor-that-does-not-fit-is-passed-over",
        MODEL + "checkpoint.py",
        "if value.shape != target[:rows].shape:",
        "if value.shape[1:] != target.shape[1:]:",
        BERT,
    ),
    Mutant(
        "activation-of-the-checkpoint-is-ignored",
        MODEL + "checkpoint.py",
        '"intermediate_size", "hidden_act",',
        '"intermediate_size",',
        BERT,
    ),
    Mutant(
        "floor-moves-the-sum",
        "fashionbert_fast/objectives/weighting.py",
        "least_T + (1 - least_T.sum()) * weights_T",
        "least_T + (1 - self.weighting.floor) * weights_T",
        (*FIELDS, *WEIGHTING),
    ),
    Mutant(
        "alpha-left-out-of-the-gradient-method",
        "fashionbert_fast/objectives/weighting.py",
        "alpha = self.weighting.alpha * len(TASKS) / len(norms_n)",
        "alpha = len(TASKS) / len(norms_n)",
        (*FIELDS, *WEIGHTING),
    ),
    Mutant(
        "a-task-without-a-gradient-takes-part",
        "fashionbert_fast/objectives/weighting.py",
        "live_T = gram_TT.diagonal() != 0",
        "live_T = gram_TT.diagonal() >= 0",
        WEIGHTING,
    ),
    Mutant(
        "a-cased-vocabulary-is-lower-cased",
        "fashionbert_fast/data/tokenizer.py",
        "if said.get(ours) is None and theirs in normalizer",
        "if said.get(ours) is not None and theirs in normalizer",
        TOKENIZER,
    ),
    Mutant(
        "a-missing-mask-token-is-added-at-the-end",
        "fashionbert_fast/data/tokenizer.py",
        "        if token not in written:\n",
        "        if not token:\n",
        TOKENIZER,
    ),
    Mutant(
        "a-warm-start-keeps-the-rates-of-before",
        MODEL + "checkpoint.py",
        "dataclasses.replace(config, num_hidden_layers=kept, **overrides)",
        "dataclasses.replace(config, num_hidden_layers=kept)",
        WARM,
    ),
)
