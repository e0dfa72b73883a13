"""The core is a standard BERT: Hugging Face's hidden states, checkpoints read and written bit for bit."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM, BertForPreTraining, BertModel

from fashionbert_fast import FashionBertConfig, FashionBertForPreTraining
from fashionbert_fast.errors import InputError
from fashionbert_fast.model.directories import CORE_FIELDS, resolve_core
from fashionbert_fast.model.fashionbert import FashionBert

SMALL = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
         "max_position_embeddings": 40}  # fmt: skip


def _inputs(vocabulary: int):
    ids_BL = torch.randint(5, vocabulary, (3, 17), generator=torch.Generator().manual_seed(0))
    mask_BL = torch.ones(3, 17, dtype=torch.bool)
    mask_BL[1, 9:] = False
    return ids_BL, mask_BL


@torch.no_grad()
def test_hidden_states_of_the_real_checkpoint():
    path = resolve_core("all-minilm-l6-v2")
    ours = FashionBertForPreTraining.from_bert(path, patch_feature_size=1280).eval()
    theirs = BertModel.from_pretrained(path).eval()
    ids_BL, mask_BL = _inputs(30000)
    expected = theirs(ids_BL, attention_mask=mask_BL.long())
    hidden = ours.encode_text(ids_BL, mask_BL)
    torch.testing.assert_close(hidden[mask_BL], expected.last_hidden_state[mask_BL], atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.tia_head.pooled(hidden[:, 0]), expected.pooler_output, atol=1e-5, rtol=0)


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
@torch.no_grad()
def test_pretraining_checkpoint_with_all_heads(tmp_path, activation):
    theirs = BertForPreTraining(BertConfig(**SMALL, hidden_act=activation)).eval()
    theirs.save_pretrained(tmp_path)
    ours = FashionBertForPreTraining.from_bert(tmp_path, patch_feature_size=16).eval()
    ids_BL, mask_BL = _inputs(99)
    hidden = ours.encode_text(ids_BL, mask_BL)
    logits = ours.mlm_head.logits(hidden, ours.text_embeddings.word.weight)
    expected = theirs(ids_BL, attention_mask=mask_BL.long()).prediction_logits
    torch.testing.assert_close(logits[mask_BL], expected[mask_BL], atol=1e-5, rtol=0)


def test_export_is_read_by_transformers_bit_for_bit(tmp_path):
    path = resolve_core("all-minilm-l6-v2")
    FashionBertForPreTraining.from_bert(path, patch_feature_size=16).export_bert(tmp_path)
    original, exported = BertModel.from_pretrained(path).state_dict(), BertModel.from_pretrained(tmp_path).state_dict()
    assert original.keys() == exported.keys()
    assert all(torch.equal(original[name], exported[name]) for name in original)
    _, loading = BertForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not loading["missing_keys"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_save_and_load_round_trip_bit_for_bit(tmp_path, dtype):
    model = FashionBertForPreTraining(FashionBertConfig(**SMALL, patch_feature_size=16, patches=4)).to(dtype)
    model.feature_manifest = {"grid": 2}
    model.save_pretrained(tmp_path)
    again = FashionBertForPreTraining.from_pretrained(tmp_path)
    assert again.config == model.config
    assert again.feature_manifest == model.feature_manifest
    assert model.training and not any(module.training for module in again.modules())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
        assert again.state_dict()[name].dtype == dtype


def test_the_core_is_read_without_the_heads_it_has_not(tmp_path):
    model = FashionBertForPreTraining(FashionBertConfig(**SMALL, patch_feature_size=16, patches=4))
    model.save_pretrained(tmp_path)
    core = FashionBert.from_pretrained(tmp_path)
    assert not hasattr(core, "mlm_head")
    for name, tensor in core.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


def test_what_is_left_out_is_berts():
    """The released model is BERT-base: its sizes, its activation, its epsilon."""
    ours, berts = FashionBertConfig(), BertConfig()
    for name in CORE_FIELDS:
        assert getattr(ours, name) == getattr(berts, name), name


def test_first_layers_only(tmp_path):
    model = FashionBertForPreTraining.from_bert("all-minilm-l6-v2", 16, num_hidden_layers=2)
    assert len(model.encoder.layers) == 2


def test_sharded_old_names_and_one_segment(tmp_path):
    theirs = BertModel(BertConfig(**SMALL, type_vocab_size=1))
    theirs.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors = {k.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): v
               for k, v in tensors.items() if "pooler" not in k}  # fmt: skip
    (tmp_path / "model.safetensors").unlink()
    names = sorted(tensors)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, members in halves.items():
        save_file({name: tensors[name].contiguous() for name in members}, tmp_path / file)
    index = {"weight_map": {name: file for file, members in halves.items() for name in members}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    ours = FashionBertForPreTraining.from_bert(tmp_path, patch_feature_size=16).eval()
    ids_BL, mask_BL = _inputs(99)
    with torch.no_grad():
        expected = theirs.eval()(ids_BL, attention_mask=mask_BL.long()).last_hidden_state
        torch.testing.assert_close(ours.encode_text(ids_BL, mask_BL)[mask_BL], expected[mask_BL], atol=1e-5, rtol=0)
    assert ours.text_embeddings.segment.weight.shape[0] == 2


def test_what_cannot_be_read_is_named(tmp_path):
    def message(path) -> str:
        with pytest.raises(InputError) as caught:
            FashionBertForPreTraining.from_bert(path, patch_feature_size=16)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "no such directory" in message(tmp_path / "nowhere")
    assert "config.json" in message(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "roberta"}')
    assert "not a BERT" in message(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", **SMALL}))
    assert "model.safetensors" in message(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"not to be unpickled")
    assert "pickle" in message(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"garbage")
    assert "model.safetensors" in message(tmp_path)
    save_file({"embeddings.word_embeddings.weight": torch.zeros(5, 32)}, tmp_path / "model.safetensors")
    assert "word_embeddings" in message(tmp_path)
    with pytest.raises(InputError, match="model_type"):
        FashionBertForPreTraining.from_pretrained(tmp_path)


@pytest.mark.parametrize("field", ["hidden_size", "patches", "hidden_dropout_prob", "hidden_act", "type_vocab_size"])
def test_nonsense_sizes_name_the_field(field):
    wrong = {"hidden_size": 33, "patches": 0, "hidden_dropout_prob": 1.5, "hidden_act": "tanh", "type_vocab_size": 1}
    with pytest.raises(ValueError, match=field):
        FashionBertConfig(**(SMALL | {field: wrong[field]}))
