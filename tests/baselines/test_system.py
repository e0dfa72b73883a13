"""What systems share: fitting by the command, directories, scores that tie where titles do; and what they read."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from fashionbert_fast.baselines import SYSTEMS
from fashionbert_fast.baselines.inputs import Lsa, Standardise, TitleEncoder, patches, standardised_patches
from fashionbert_fast.baselines.system import Scorer
from fashionbert_fast.baselines.systems import fit, load, load_scorer, summands
from fashionbert_fast.cli import main
from fashionbert_fast.data.pairs import collate_texts
from fashionbert_fast.errors import InputError
from fashionbert_fast.evaluation.reports.scores import read_scores
from fashionbert_fast.features.store import FeatureStore
from fashionbert_fast.model.fashionbert import FashionBert


@pytest.fixture(scope="module")
def run(store_path, core, tmp_path_factory):
    """A CCA fitted by the command."""
    out = tmp_path_factory.mktemp("runs") / "cca"
    assert main(["baseline", "cca", "--data", str(store_path), "--out", str(out), "--core", str(core)]) == 0
    return out


# Every system -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", SYSTEMS)
def test_a_system_is_the_same_when_it_is_read_again(store_path, core, tmp_path, name):
    out = tmp_path / "run"
    command = ["baseline", name, "--data", str(store_path), "--out", str(out), "--core", str(core), "--epochs", "1"]
    assert main(command) == 0
    store = FeatureStore.open(store_path)
    text, image = (side.ravel() for side in np.meshgrid(store.rows("validation"), store.rows("validation")))
    first, again = load_scorer(out, store, store_path)[0], load_scorer(out, store, store_path)[0]
    scores = first.score(text, image)
    assert scores.dtype == np.float64 and np.isfinite(scores).all()
    np.testing.assert_array_equal(again.score(text, image), scores)
    assert main(command) == 2  # it is there already
    assert sorted(path.suffix for path in out.iterdir() if path.suffix in (".pkl", ".bin", ".pt")) == []


@pytest.mark.parametrize("name", sorted(SYSTEMS.keys() - {"random", "category", "text", "photo"}))
def test_the_seed_alone_decides(store_path, core, name):
    from fashionbert_fast.baselines.fitting import Budget

    store, rows = FeatureStore.open(store_path), np.arange(8)

    def scores(seed: int) -> np.ndarray:
        system = fit(name, store, seed=seed, budget=Budget(epochs=1), core=core)
        return Scorer(system, store).score(rows, rows[::-1])

    np.testing.assert_array_equal(scores(3), scores(3))
    if name != "cca":  # LSA of few titles is exact
        assert (scores(3) != scores(4)).any()


def test_equal_titles_tie_exactly(run, store_path):
    store = FeatureStore.open(store_path)
    titles = np.array(store.titles)
    one, other = next(np.flatnonzero(titles == title) for title in titles if (titles == title).sum() > 1)[:2]
    photos = np.arange(len(store))
    scorer = Scorer(load(run, store), store)
    first = scorer.score(np.full(len(store), one), photos)
    np.testing.assert_array_equal(scorer.score(np.full(len(store), other), photos), first)
    assert len(np.unique(first)) > 1


def test_the_answers_do_not_depend_on_what_else_is_asked(run, store_path):
    store = FeatureStore.open(store_path)
    text, image = (side.ravel() for side in np.meshgrid(np.arange(30), np.arange(30)))
    whole = Scorer(load(run, store), store).score(text, image)
    scorer = Scorer(load(run, store), store)
    scorer.system.pairs_at_once = 7
    order = np.random.default_rng(0).permutation(900)
    parts = np.concatenate([scorer.score(text[part], image[part]) for part in np.array_split(order, 5)])
    np.testing.assert_allclose(parts, whole[order], atol=1e-6)


# The commands ---------------------------------------------------------------------------------------------------------
def test_baselines_are_evaluated_and_compared_like_any_model(run, store_path, core, tmp_path, capsys):
    sum_run, lists = tmp_path / "sum", str(tmp_path / "lists.json")
    mlp = ["baseline", "mlp", "--data", str(store_path), "--out", str(tmp_path / "mlp"), "--core", str(core)]
    assert main([*mlp, "--epochs", "2"]) == 0
    parts = ["--parts", str(tmp_path / "mlp"), str(run)]
    assert main(["baseline", "mlp+cca", *parts, "--data", str(store_path), "--out", str(sum_run)]) == 0
    evaluate = ["evaluate", "--data", str(store_path), "--checkpoint"]
    files = [str(tmp_path / f"{name}.parquet") for name in ("cca", "sum")]
    found = str(tmp_path / "found.json")
    assert main([*evaluate, str(run), "--save-candidates", lists, "--scores", files[0], "--json", found]) == 0
    assert main([*evaluate, str(sum_run), "--candidates-from", lists, "--scores", files[1]]) == 0
    assert main(["compare", *files]) == 0
    result = json.loads((tmp_path / "found.json").read_text())
    assert result["score"] == "similarity" and result["alignment_accuracy"] > 0.6
    assert read_scores(tmp_path / "sum.parquet").run.startswith(str(sum_run))
    assert main([*evaluate, str(run), "--protocol", "full", "--gallery", str(tmp_path / "page.html")]) == 0
    assert "page.html" in capsys.readouterr().out or (tmp_path / "page.html").stat().st_size > 1000


@pytest.mark.parametrize("options, says", [
    (["nothing"], "no such system"), (["cca", "--epochs", "0"], "--epochs"), (["cca", "--seconds", "-1"], "--seconds"),
    (["cca", "--seconds", "1", "--epochs", "1"], "leave one out"), (["cca", "--parts", "a", "b"], "is no sum"),
    (["cca+mlp", "--parts", "{run}", "{run}"], "where cca\\+mlp has mlp"), (["cca", "--core", "nowhere"], "nowhere"),
])  # fmt: skip
def test_what_a_user_can_mend_is_one_line(run, store_path, tmp_path, capsys, options, says):
    options = [option.format(run=run) for option in options]
    assert main(["baseline", *options, "--data", str(store_path), "--out", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and __import__("re").search(says, message), message


def test_a_store_without_a_validation_split_is_refused(planted, core):
    planted = FeatureStore.open(planted.path)
    planted.columns["split"][:] = ["train"] * len(planted)
    with pytest.raises(InputError, match="--holdout"):
        fit("cca", planted, core=core)


def test_other_features_are_refused(run, store_path):
    store = FeatureStore.open(store_path)
    store.manifest.encoder["weights_sha256"] = "1" * 64
    with pytest.raises(InputError, match="cannot be mixed"):
        load(run, store)


@pytest.mark.parametrize("edit, says", [
    (lambda config: config.update(name="os.system"), "no such system"),
    (lambda config: config.update(options={"dimensions": 3}), "fit the baseline again"),
    (lambda config: config["options"].update(dimensions=2**40), "fit the baseline again"),
    (lambda config: config.update(options=[]), "options"),
    (lambda config: config.update(model_type="fashionbert"), "model_type"),
])  # fmt: skip
def test_an_edited_directory_is_refused(run, store_path, tmp_path, edit, says):
    broken = tmp_path / "broken"
    shutil.copytree(run, broken)
    config = json.loads((broken / "config.json").read_text())
    edit(config)
    (broken / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=says):
        load(broken, FeatureStore.open(store_path))


def test_names_of_sums():
    assert summands("infonce+cca") == ("infonce", "cca") and summands("vse+++cca") == ("vse++", "cca")
    assert summands("cca+vse++") == ("cca", "vse++") and summands("vse++") is None and summands("cca+") is None


# What they read -------------------------------------------------------------------------------------------------------
def test_lsa_is_scikit_learn_s(planted):
    texts = [planted.titles[row] for row in planted.rows("train")]
    lsa = Lsa.fit(texts, seed=0, dimensions=5)
    vectorizer = TfidfVectorizer(sublinear_tf=True, min_df=2)
    svd = TruncatedSVD(5, random_state=0).fit(vectorizer.fit_transform(texts))
    asked = ["red red silk boots", "nothing of this", planted.titles[0]]
    np.testing.assert_allclose(lsa(asked), svd.transform(vectorizer.transform(asked)), atol=1e-6)


def test_titles_through_a_bert_are_fashionbert_s_vectors(planted, core):
    """However many layers are trained, and whether or not the frozen ones' states are held."""
    rows = np.arange(20)
    bert = FashionBert.from_bert(core, patch_feature_size=1, patches=1).eval()
    for trained in (0, 1, 2):
        encoder = TitleEncoder.from_bert(core, trained).eval()
        encoder.open(planted)
        theirs = bert.vectors(collate_texts(encoder.titles, rows, 1, 1))
        torch.testing.assert_close(encoder.means(rows), theirs)
        encoder.hold(np.arange(5, 40))
        torch.testing.assert_close(encoder.means(rows), theirs)  # some are not held
        torch.testing.assert_close(encoder.means(rows[10:][::-1].copy()), theirs[10:].flip(0))
        trainable = [name for name, p in encoder.named_parameters() if p.requires_grad]
        assert {name.split(".")[3] for name in trainable} == {str(1 - i) for i in range(trained)}


def test_words_are_padded_behind(planted, core):
    encoder = TitleEncoder.from_bert(core).eval()
    encoder.open(planted)
    hidden_TH, offsets = encoder.hidden(np.arange(4))
    words_nLH, live_nL = encoder.words(np.arange(4), most=20)
    assert words_nLH.shape[:2] == live_nL.shape == (4, 20) and (words_nLH[~live_nL] == 0).all()
    torch.testing.assert_close(words_nLH[2, : live_nL[2].sum()], hidden_TH[offsets[2] : offsets[3]])


def test_standardised_patches_have_mean_0_and_deviation_1(planted):
    rows = planted.rows("train")
    scaled = standardised_patches(planted, rows)(patches(planted, rows)).flatten(0, 1)
    torch.testing.assert_close(scaled.mean(0), torch.zeros(24), atol=1e-5, rtol=0)
    torch.testing.assert_close(scaled.std(0, correction=0), torch.ones(24), atol=1e-4, rtol=0)


def test_a_feature_that_never_varies_is_centred():
    assert Standardise(2).fit(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))(torch.tensor([[1.0, 5.0]])).tolist() == [[-1, 0]]
