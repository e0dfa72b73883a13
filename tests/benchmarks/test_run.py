"""`fashionbert bench`: what --only leaves, the JSON and the picture beside it."""

from __future__ import annotations

import json

from fashionbert_fast.cli import main


def test_only_the_named_operator_is_measured(tmp_path):
    path = tmp_path / "rows.json"
    assert main(["bench", "solve", "--quick", "--only", "min_norm_weights", "--json", str(path)]) == 0
    result = json.loads(path.read_text())
    assert result["rows"] and all(row["case"].startswith("min_norm_weights") for row in result["rows"])
    assert path.with_suffix(".png").stat().st_size > 0


def test_an_unknown_measurement_is_refused_by_name(capsys):
    for suite, known in (("ops", "patch_kld"), ("step", "zero-1")):
        assert main(["bench", suite, "--only", "nonsense"]) == 2
        error = capsys.readouterr().err
        assert "--only nonsense" in error and known in error
