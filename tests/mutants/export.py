"""Breaks of what is written for other programs: directory, card, graphs, and the check of these."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

EXPORT = "fashionbert_fast/export/"
DIRECTORY, CARD = ("tests/export/test_bert.py",), ("tests/export/test_card.py",)
TRACED = ("tests/export/test_onnx.py::test_other_activations",)
FAULTS = ("tests/export/test_onnx.py::test_a_fault_in_a_graph_is_found",)

MUTANTS = (
    Mutant(
        "exported-patches-have-the-names-of-a-saved-model",
        "fashionbert_fast/model/directories.py",
        'return [f"{OWN}.{ours}"]',
        "return [ours]",
        DIRECTORY,
    ),
    Mutant(
        "an-export-is-no-model-to-go-on-from",
        "fashionbert_fast/model/directories.py",
        ' == "fashionbert" or _is_exported(directory))',
        ' == "fashionbert")',
        DIRECTORY,
    ),
    Mutant(
        "where-the-catalogue-lay-is-given-away",
        EXPORT + "bert.py",
        "source=Path(manifest.source).name",
        "source=manifest.source",
        DIRECTORY,
    ),
    Mutant(
        "figures-of-another-step-on-the-card",
        EXPORT + "card.py",
        'step.startswith("step-") and of != step',
        'step.startswith("step-") and of == ""',
        CARD,
    ),
    Mutant(
        "a-path-becomes-the-base-model",
        EXPORT + "card.py",
        'return core if is_id and isinstance(try_to_load_from_cache(core, "config.json"), str) else None',
        "return core if is_id else None",
        CARD,
    ),
    Mutant(
        "padding-is-attended-in-graphs",
        EXPORT + "padded.py",
        "if live_BS is not None:",
        "if live_BS is None:",
        TRACED,
    ),
    Mutant(
        "places-of-a-title-from-1-in-graphs",
        EXPORT + "padded.py",
        "(attention_mask_BL.cumsum(1) - 1)",
        "(attention_mask_BL.cumsum(1))",
        TRACED,
    ),
    Mutant(
        "the-check-lets-what-is-no-number-pass",
        EXPORT + "check.py",
        "if not difference <= TOLERANCE:",
        "if difference > TOLERANCE:",
        FAULTS,
    ),
)
