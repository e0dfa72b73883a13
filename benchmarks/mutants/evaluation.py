"""Breaks of the evaluation: who is ranked against whom, ranks, recalls, scores."""

from __future__ import annotations

from benchmarks.mutants.mutant import Mutant

EVALUATION = "fashionbert_fast/evaluation/"
RANKING = ("tests/evaluation/test_ranking.py",)
PROTOCOLS = ("tests/evaluation/test_protocols.py",)
SCORER = ("tests/evaluation/test_scorer.py", "tests/evaluation/test_evaluate_model.py")
MODEL = ("tests/evaluation/test_evaluate_model.py",)
PROCESSOR = ("tests/test_processor.py",)

MUTANTS = (
    Mutant(
        "ties-flatter",
        EVALUATION + "ranking.py",
        "tied_Q = (scores_QC == true_Q1).sum(axis=1) - 1",
        "tied_Q = 0 * better_Q",
        RANKING,
    ),
    Mutant(
        "recall-off-by-one",
        EVALUATION + "ranking.py",
        "return self.rank_Q <= k",
        "return self.rank_Q <= k + 1",
        RANKING,
    ),
    Mutant(
        "ranks-from-zero",
        EVALUATION + "ranking.py",
        "return self.better_Q + self.tied_Q + 1",
        "return self.better_Q + self.tied_Q",
        RANKING,
    ),
    Mutant(
        "the-released-fault-is-mended",
        EVALUATION + "ranking.py",
        'query_id if row % batch_size == 0 else " " + query_id',
        "query_id",
        RANKING,
    ),
    Mutant(
        "other-of-shoes-is-other-of-bags",
        EVALUATION + "candidates.py",
        "numbered(zip(categories, subcategories, strict=True))",
        "numbered(subcategories)",
        PROTOCOLS,
    ),
    Mutant(
        "candidates-ignore-the-seed",
        EVALUATION + "candidates.py",
        '_hash64("candidates", self.seed, self.ids[query])',
        '_hash64("candidates", self.ids[query])',
        PROTOCOLS,
    ),
    Mutant(
        "queries-ignore-the-seed",
        EVALUATION + "candidates.py",
        '_hash64("queries", self.seed)',
        '_hash64("queries")',
        PROTOCOLS,
    ),
    Mutant(
        "mismatches-counted-as-right",
        EVALUATION + "protocols.py",
        "(~negatives_Q).astype(float)",
        "negatives_Q.astype(float)",
        PROTOCOLS,
    ),
    Mutant(
        "directions-change-places",
        EVALUATION + "protocols.py",
        'return getattr(self, f"{direction}_QC")',
        "return self.text_to_image_QC",
        PROTOCOLS,
    ),
    Mutant(
        "titles-and-images-change-places",
        EVALUATION + "protocols.py",
        "scores_K = _score_pairs(rows_N[text_K], rows_N[image_K], score, pairs_per_call)",
        "scores_K = _score_pairs(rows_N[image_K], rows_N[text_K], score, pairs_per_call)",
        PROTOCOLS,
    ),
    Mutant(
        "probe-measured-on-what-it-was-fitted-on",
        EVALUATION + "recognition.py",
        "measured_E = np.setdiff1d(rows_E, training_T)",
        "measured_E = rows_E",
        ("tests/evaluation/test_recognition.py",),
    ),
    Mutant(
        "scores-in-training-mode",
        EVALUATION + "scorer.py",
        'self.model = model.eval() if precision == "fp32"',
        'self.model = model.train() if precision == "fp32"',
        SCORER,
    ),
    Mutant(
        "scores-come-back-in-batch-order",
        EVALUATION + "scorer.py",
        "return scores_U[place_K]",
        "return scores_U[np.sort(place_K)]",
        SCORER,
    ),
    Mutant(
        "the-mismatch-class-is-the-score",
        EVALUATION + "scorer.py",
        "torch.sigmoid(logits_B2[:, 1] - logits_B2[:, 0])",
        "torch.sigmoid(logits_B2[:, 0] - logits_B2[:, 1])",
        SCORER,
    ),
    Mutant(
        "evaluated-on-features-of-another-encoder",
        "fashionbert_fast/evaluation/checkpoint.py",
        '        require_same_features(model.feature_manifest, store.manifest, f"{model_dir} and {data}")\n',
        "        pass\n",
        MODEL,
    ),
    Mutant(
        "titles-cut-as-in-the-reference-not-the-run",
        "fashionbert_fast/processor.py",
        "load_config(run_config).data.max_text_tokens if run_config.exists() else DataConfig().max_text_tokens",
        "DataConfig().max_text_tokens",
        PROCESSOR,
    ),
    Mutant(
        "the-processor-takes-any-encoder",
        "fashionbert_fast/processor.py",
        "        if difference:\n",
        "        if False:\n",
        PROCESSOR,
    ),
    Mutant(
        "titles-have-special-tokens-in-the-processor",
        "fashionbert_fast/processor.py",
        "split_special_tokens=True",
        "split_special_tokens=False",
        PROCESSOR,
    ),
    Mutant(
        "padding-is-read-as-text",
        "fashionbert_fast/data/packing.py",
        "live_BL = attention_mask_BL.cpu().bool()",
        "live_BL = torch.ones_like(attention_mask_BL.cpu()).bool()",
        PROCESSOR,
    ),
    Mutant(
        "topped-up-lists-are-not-counted",
        EVALUATION + "protocols.py",
        "int((tier_Q == 1).sum())",
        "int((tier_Q > 1).sum())",
        PROTOCOLS,
    ),
    Mutant(
        "other-views-are-candidates",
        EVALUATION + "candidates.py",
        "kin_N = self.view_N if twins else self.twin_N",
        "kin_N = np.arange(len(self.ids)) if twins else self.twin_N",
        PROTOCOLS,
    ),
    Mutant(
        "a-twin-is-the-mismatch",
        EVALUATION + "candidates.py",
        "stranger_QC = sampler.twin_N[candidates_QC] != sampler.twin_N[queries_Q][:, None]",
        "stranger_QC = candidates_QC != queries_Q[:, None]",
        PROTOCOLS,
    ),
    Mutant(
        "what-is-left-out-ties",
        EVALUATION + "protocols.py",
        "scores[lists.left_out_QC] = -np.inf",
        "scores[lists.left_out_QC] = 0.5",
        PROTOCOLS,
    ),
    Mutant(
        "equal-photos-do-not-tie",
        EVALUATION + "scorer.py",
        "_first_rows(known or row for row, known in enumerate(store.image_hashes))",
        "np.arange(len(store))",
        SCORER,
    ),
    Mutant(
        "leaks-of-the-evaluated-split-are-not-told",
        "fashionbert_fast/evaluation/checkpoint.py",
        'result["leaks"] = leaks(store)[split]',
        'result["leaks"] = {kind: 0 for kind in leaks(store)[split]}',
        MODEL,
    ),
    Mutant(
        "intervals-of-another-level",
        EVALUATION + "intervals.py",
        "[(1 - LEVEL) / 2, (1 + LEVEL) / 2]",
        "[1 - LEVEL, LEVEL]",
        ("tests/evaluation/test_intervals.py",),
    ),
)
