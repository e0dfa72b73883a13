"""Breaks of the configuration, the command line and the files written for others."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

CONFIG = "fashionbert_fast/config.py"
TESTS = ("tests/test_config.py",)

MUTANTS = (
    Mutant(
        "the-file-wins-over-overrides",
        CONFIG,
        "merged = _merged(merged, _parsed(override), override)",
        "merged = _merged(OmegaConf.merge(merged, _parsed(override)), raw, override)",
        TESTS,
    ),
    Mutant(
        "a-dropout-of-one-is-accepted",
        CONFIG,
        "getattr(self, name), 0.0, 1.0, open_high=True)",
        "getattr(self, name), 0.0, 1.0)",
        TESTS,
    ),
    Mutant(
        "betas-are-not-checked",
        CONFIG,
        "if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):",
        "if len(self.betas) != 2:",
        TESTS,
    ),
    Mutant(
        "lamb-under-zero-is-accepted",
        CONFIG,
        'if self.optimizer == "lamb" and self.zero_stage > 0:',
        'if self.optimizer == "lamb" and self.zero_stage > 1:',
        TESTS,
    ),
    Mutant(
        "masking-rate-is-not-the-released-one",
        "fashionbert_fast/data/config.py",
        "mlm_rate: float = 0.15",
        "mlm_rate: float = 0.2",
        TESTS,
    ),
    Mutant(
        "clipping-is-not-checked",
        CONFIG,
        'for name in ("weight_decay", "gradient_clipping", "keep_hours"):',
        'for name in ("weight_decay", "keep_hours"):',
        TESTS,
    ),
    Mutant(
        "floor-with-a-method-that-has-none",
        "fashionbert_fast/model/config.py",
        "if self.floor and self.method not in FLOORED:",
        'if self.floor and self.method == "fixed":',
        ("tests/objectives/test_weighting.py::test_nonsense_names_the_field", *TESTS),
    ),
    Mutant(
        "layer-norm-eps-is-torchs",
        "fashionbert_fast/model/config.py",
        "layer_norm_eps: float = 1e-12",
        "layer_norm_eps: float = 1e-5",
        ("tests/model/test_bert.py", *TESTS),
    ),
    Mutant(
        "bad-input-exits-with-one",
        "fashionbert_fast/cli.py",
        "    status = 2\n",
        "    status = 1\n",
        ("tests/test_cli.py",),
    ),
    Mutant(
        "an-unwritable-file-is-noticed-too-late",
        "fashionbert_fast/files.py",
        "    if not parent.is_dir():\n",
        "    if not parent:\n",
        ("tests/test_cli.py", "tests/evaluation/test_evaluate_command.py"),
    ),
    Mutant(
        "drawn-garments-do-not-follow-the-seed",
        "fashionbert_fast/demo/garments/catalogue.py",
        'random.Random(f"garment {seed} {number}")',
        'random.Random(f"garment {number}")',
        ("tests/demo/test_catalogue.py",),
    ),
    Mutant(
        "a-diverged-run-is-bad-input",
        "fashionbert_fast/cli.py",
        "message, status = str(error), 1",
        "message, status = str(error), 2",
        ("tests/engine/health/test_nonfinite.py",),
    ),
)
