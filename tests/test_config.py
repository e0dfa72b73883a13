"""Configuration: defaults, files, overrides, and one line that names the field for everything wrong."""

from __future__ import annotations

import no_files
import pytest
import yaml

from fashionbert_fast.config import SHIPPED, load_config
from fashionbert_fast.errors import InputError

NEEDED = ["data.store=s", "train.output=r"]


def test_overrides_win_over_the_file_which_wins_over_defaults(tmp_path):
    (tmp_path / "c.yaml").write_text("train: {lr: 2.0e-4, steps: 7}\n")
    config = load_config(tmp_path / "c.yaml", [*NEEDED, "train.steps=9", "weighting.preference=[0.1,1,0.1]"])
    assert (config.train.lr, config.train.steps, config.train.warmup_ratio) == (2e-4, 9, 0.1)
    assert config.weighting.preference == [0.1, 1.0, 0.1]


def test_the_resolved_file_gives_the_same_configuration(tmp_path):
    config = load_config(None, [*NEEDED, "model.layers=3", "weighting.method=min_norm"])
    (tmp_path / "resolved.yaml").write_text(config.to_yaml())
    assert load_config(tmp_path / "resolved.yaml") == config


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configurations_load_by_name_from_anywhere(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config(name, NEEDED) == load_config(SHIPPED[name], NEEDED)


def test_a_best_checkpoint_by_queries_needs_queries():
    assert load_config("query", NEEDED).queries.weight == 1.0
    with pytest.raises(InputError, match=r"keep_best query_accuracy needs queries\.weight above 0"):
        load_config("query", [*NEEDED, "queries.weight=0"])


def test_a_file_of_ones_own_wins_over_a_shipped_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").write_text("train: {steps: 7}\n")
    assert load_config("base", NEEDED).train.steps == 7


def test_the_released_recipe_is_the_default():
    config = load_config(None, NEEDED)
    assert (config.train.lr, config.train.weight_decay, config.train.warmup_ratio) == (1e-4, 0.0, 0.1)
    assert (config.data.max_text_tokens, config.data.mlm_rate, config.data.mlm_most) == (64, 0.15, 10)
    assert (config.data.patch_rate, config.data.predict_negatives) == (0.1, True)
    assert (config.weighting.method, config.weighting.alpha, config.weighting.detach_weights) == ("loss", 1.0, False)


@pytest.mark.parametrize(
    "override",
    ["data.split=dev", "data.negatives=hard", "data.pairs=three", "data.max_text_tokens=2", "data.negative_rate=1.5",
     "data.mlm_rate=-0.1", "data.patch_rate=2", "data.mlm_most=-1", "data.workers=-1", "data.random_negative_epochs=-1",
     "model.hidden_size=0", "model.heads=7", "model.layers=0", "model.hidden_dropout=1", "model.attention_dropout=-1",
     "model.patch_dropout=2", "model.layer_norm=batch",
     "model.vocab_size=0", "model.initializer_range=0", "weighting.method=sum",
     "weighting.alpha=0.2", "weighting.normalise=l2", "weighting.floor=0.2", "weighting.preference=[1,1]",
     "train.steps=0", "train.micro_batch_size=0", "train.gradient_accumulation_steps=0", "train.optimizer=sgd",
     "train.optimizer_backend=own", "train.lr=0", "train.lr=fast", "train.betas=[0.9]", "train.betas=[0.9,1.0]",
     "train.eps=0", "train.weight_decay=-1", "train.schedule=step", "train.warmup_ratio=1.1",
     "train.gradient_clipping=-1", "train.precision=fp8", "train.zero_stage=4", "train.cuda_graphs=perhaps",
     "train.fp8=perhaps", "train.log_every=0",
     "train.checkpoint_every=-1", "train.keep_checkpoints=0", "train.momentum=0.9",
     "validation.every=-1", "validation.pairs=1", "validation.patience=-1", "validation.keep_best=accuracy"],
)  # fmt: skip
def test_nonsense_names_the_field(override):
    with pytest.raises(InputError) as caught:
        load_config(None, [*NEEDED, override])
    message = str(caught.value)
    assert override.split("=")[0].split(".")[-1] in message
    assert "\n" not in message


def test_an_unknown_section_is_named():
    with pytest.raises(InputError, match="optimizer"):
        load_config(None, [*NEEDED, "optimizer.lr=1"])


def test_combinations_that_cannot_be():
    with pytest.raises(InputError, match="lamb needs"):
        load_config(None, [*NEEDED, "train.optimizer=lamb"])
    with pytest.raises(InputError, match=r"model\.tokenizer"):
        load_config(None, [*NEEDED, "model.core=x", "model.tokenizer=y"])
    for field in ("cuda_graphs", "fp8"):
        with pytest.raises(InputError, match=rf"train\.{field} needs train\.zero_stage"):
            load_config(None, [*NEEDED, f"train.{field}=true", "train.precision=bf16", "train.zero_stage=3"])
    with pytest.raises(InputError, match=r"validation\.patience needs validation\.keep_best"):
        load_config(None, [*NEEDED, "validation.patience=3"])
    with pytest.raises(InputError, match=r"validation\.keep_best needs validation\.every"):
        load_config(None, [*NEEDED, "validation.keep_best=loss", "validation.every=0"])
    with pytest.raises(InputError, match=r"train\.fp8 needs train\.precision bf16"):
        load_config(None, [*NEEDED, "train.fp8=true"])


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match=r"missing\.yaml"):
        load_config(tmp_path / "missing.yaml")
    (tmp_path / "list.yaml").write_text("- a\n- b\n")
    with pytest.raises(InputError, match=r"list\.yaml"):
        load_config(tmp_path / "list.yaml", NEEDED)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(InputError, match=r"binary\.yaml"):
        load_config(tmp_path / "binary.yaml", NEEDED)
    with pytest.raises(InputError, match=r"data\.store is not set"):
        load_config(None)


def _laughs(levels: int) -> str:
    """A billion laughs: each line is nine of the one before."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, levels)]
    return "\n".join(lines)


HOSTILE = {  # a file -> what is said of it
    "laughs": (_laughs(9), "aliases make more"),
    "an alias of itself": ("train: &t {lr: *t}", "alias within what it stands for"),
    "nested": ("train: " + "[" * 20_000, "nested too deeply"),
    "nested more": ("train: " + "{a: " * 10_000, "nested too deeply"),
    "an object": ("train: !!python/object/apply:os.system ['touch {canary}']", "not valid YAML"),
    "an object by name": ("train: !!python/name:os.system", "not valid YAML"),
    "the environment": ("train: {output: '${oc.env:SECRET}'}", "is not looked up"),
    "the environment, wrapped": ("train: {output: '${oc.decode:${oc.env:SECRET}}'}", "is not looked up"),
    "the environment, by a name put together": ("train: {output: '${${data.split}:SECRET}'}", "is not looked up"),
    "a circle": ("train: {output: '${data.store}'}\ndata: {store: '${train.output}'}", "Recursive interpolation"),
    "itself": ("data: {store: x}\ntrain: {output: '${train.output}'}", "Recursive interpolation"),
    "a field that is not there": ("data: {store: x}\ntrain: {output: '${train.home}'}", "train.output: "),
    "huge steps": ("train: {steps: 1000000000000000000000000000000}", "train.steps must lie within 64 bits"),
    "huge seed": (f"train: {{seed: -{10**30}}}", "train.seed must lie within 64 bits"),
    "digits": ("train: {steps: " + "1" * 5000 + "}", "not valid YAML"),
    "layers": ("model: {layers: 100000}", "model.layers must lie in [1, 1000]"),
    "a vocabulary": ("model: {vocab_size: 2000000000}", "model.vocab_size must lie in"),
    "workers": ("data: {workers: 1000000}", "data.workers must lie in"),
    "tokens": ("data: {max_text_tokens: 1000000000}", "data.max_text_tokens must lie in"),
    "not a number": ("train: {lr: .nan}", "train.lr"),
    "no sections": ("- train", "holds no sections"),
    "terminal": ("train: {'\x1b[2J': 1}", ""),
    "long": ("#" * 70_000, "are more than 65,536"),
}  # fmt: skip


@pytest.mark.parametrize("kind", [*HOSTILE, "binary", *no_files.KINDS])
def test_a_strangers_file_is_told_in_a_line(tmp_path, kind, monkeypatch):
    monkeypatch.setenv("SECRET", "password")
    path, canary = tmp_path / "c.yaml", tmp_path / "canary"
    said = ""
    if kind in HOSTILE:
        text, said = HOSTILE[kind]
        path.write_text(text.replace("{canary}", str(canary)))
    elif kind == "binary":
        path.write_bytes(bytes(range(256)))
    else:
        no_files.make(path, kind)
    with pytest.raises(InputError) as raised:
        load_config(path, [] if kind in HOSTILE and "store:" in HOSTILE[kind][0] else NEEDED)
    message = str(raised.value)
    assert message.startswith(str(path)) and said in message and "\n" not in message and len(message) < 800
    assert "password" not in message and "\x1b" not in message and not canary.exists()


@pytest.mark.parametrize("override", ["train.output=${oc.env:SECRET}", "train.lr=" + "[" * 10_000,
                                      "train.betas=&a [*a]", "." * 10_000 + "=1", f"train.seed={10**30}",
                                      "train.lr=!!python/name:os.system"])  # fmt: skip
def test_a_strangers_override_is_told_in_a_line(override, monkeypatch):
    monkeypatch.setenv("SECRET", "password")
    with pytest.raises(InputError) as raised:
        load_config(None, [*NEEDED, override])
    assert "\n" not in str(raised.value) and "password" not in str(raised.value) and len(str(raised.value)) < 800


def test_aliases_and_fields_that_name_others_are_read(tmp_path):
    (tmp_path / "c.yaml").write_text(
        "train: {steps: &n 7, warmup_ratio: 0.5, output: 'runs/${train.steps}'}\nvalidation: {every: *n}\n"
    )
    config = load_config(tmp_path / "c.yaml", ["data.store=x"])
    assert (config.train.output, config.validation.every) == ("runs/7", 7)


def test_the_file_is_plain_yaml():
    for path in SHIPPED.values():
        assert isinstance(yaml.safe_load(path.read_text()), dict)


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("train.learning_rate=1", "did you mean train.lr?"),
        ("train.batch_size=8", "did you mean train.micro_batch_size?"),
        ("train.mirco_batch_size=8", "did you mean train.micro_batch_size?"),
        ("train.layers=2", "did you mean model.layers?"),  # of another section
        ("trian.lr=1", "did you mean train?"),
    ],
)
def test_a_field_that_is_not_there_suggests_what_was_meant(override, meant, tmp_path):
    (tmp_path / "c.yaml").write_text("{}\n")
    with pytest.raises(InputError, match="^" + override.replace(".", r"\.")) as caught:
        load_config(tmp_path / "c.yaml", [*NEEDED, override])
    assert meant in str(caught.value) and "c.yaml" not in str(caught.value)


@pytest.mark.parametrize("wrong", ["train.lr=fast", "train.lr=0", "weighting.preference=[1,1]"])
def test_an_override_is_blamed_for_what_it_says_and_the_file_for_the_rest(wrong, tmp_path):
    (tmp_path / "c.yaml").write_text("train: {warmup_ratio: 0.2}\n")
    with pytest.raises(InputError) as caught:
        load_config(tmp_path / "c.yaml", [*NEEDED, wrong])
    assert str(caught.value).startswith(wrong)
    (tmp_path / "c.yaml").write_text("train: {warmup_ratio: 2}\n")
    with pytest.raises(InputError, match=r"c\.yaml: train\.warmup_ratio"):
        load_config(tmp_path / "c.yaml", [*NEEDED, "train.lr=1e-3"])
