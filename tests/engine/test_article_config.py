"""`--config article`, the released recipe, from a directory laid out as google-bert/bert-base-uncased."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
from bert_directory import TINY, bert_directory
from conftest import write_store
from training import ENVIRONMENT, fashionbert
from transformers import AutoTokenizer, BertForMaskedLM, BertTokenizerFast

from fashionbert_fast import FashionBertForPreTraining
from fashionbert_fast.data.tokenizer import load_tokenizer
from fashionbert_fast.engine.reporting.metrics import read_metrics
from fashionbert_fast.run_directory import resolve_model_dir

TITLES = ["Red Café Shirt, model 7", "blue SNEAKER"]


def _command(store: Path, bert: Path, output: Path) -> list[str]:
    return ["pretrain", "--config", "article", f"data.store={store}", f"train.output={output}", f"model.core={bert}",
            "train.steps=20"]  # fmt: skip


def test_a_small_bert_of_that_layout(tmp_path):
    """All the way: trained by the command line, exported, read by transformers with the same ids."""
    bert = bert_directory(tmp_path / "bert", **TINY)
    store = write_store(tmp_path / "store", products=128, grid=8)
    run, exported = tmp_path / "run", tmp_path / "exported"
    done = fashionbert(*_command(store, bert, run))
    assert done.returncode == 0, done.stderr
    assert fashionbert("export", "--checkpoint", str(run), "--out", str(exported)).returncode == 0
    losses = [record["losses"]["mlm"] for record in read_metrics(run)]
    assert 9 < losses[0] < 12 and losses[-1] < losses[0]  # near ln 30522, and learning
    config = FashionBertForPreTraining.from_pretrained(resolve_model_dir(run)).config
    assert (config.vocab_size, config.max_position_embeddings, config.hidden_size) == (30522, 512, 32)
    expected = load_tokenizer(bert)(TITLES)["input_ids"]
    assert load_tokenizer(resolve_model_dir(run))(TITLES)["input_ids"] == expected
    for theirs in (AutoTokenizer, BertTokenizerFast):
        tokenizer = theirs.from_pretrained(exported)
        assert tokenizer(TITLES)["input_ids"] == expected and tokenizer.mask_token_id == 103
    _, loading = BertForMaskedLM.from_pretrained(exported, output_loading_info=True)
    assert not loading["missing_keys"]


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_bert_base_in_20_steps(tmp_path):
    """12 layers of 768, 64 pairs a step, 64 patches of 2,048. Prints how long it took and how much memory."""
    bert = bert_directory(tmp_path / "bert")
    store = write_store(tmp_path / "store", products=128, feature_size=2048, grid=8)
    start = time.perf_counter()
    command = [sys.executable, "-m", "fashionbert_fast", *_command(store, bert, tmp_path / "run")]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"20 steps of BERT-base: {time.perf_counter() - start:.0f} s, {memory:.1f} GiB at most")
    records = read_metrics(tmp_path / "run")
    assert [record["step"] for record in records] == [10, 20]
    assert records[-1]["losses"]["mlm"] < 12
    assert memory < 16
