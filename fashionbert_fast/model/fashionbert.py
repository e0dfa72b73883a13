"""FashionBert: the core, from titles and patches to joint hidden states; what an objective puts heads on.

Shapes: B pairs, S sequences, N title tokens of all pairs, P patches, T rows of the packed axis, H hidden, E numbers of
a vector, I images in the batch, D patch feature.
"""

from __future__ import annotations

from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from torch import nn

from fashionbert_fast.data.batch import PackedPairs
from fashionbert_fast.data.packing import pack_padded
from fashionbert_fast.errors import InputError
from fashionbert_fast.kernels.dropout import draw_seed
from fashionbert_fast.model import directories
from fashionbert_fast.model.config import FashionBertConfig
from fashionbert_fast.model.embeddings import (
    IMAGE_SEGMENT,
    QUERY_SEGMENT,
    TEXT_SEGMENT,
    PatchEmbeddings,
    TextEmbeddings,
    divisors,
)
from fashionbert_fast.model.encoder import Encoder, Packing, dropout_sites
from fashionbert_fast.model.heads import ContrastiveHead, segment_sums


class FashionBert(nn.Module):
    """Text and patches through one BERT core (Gao et al., SIGIR 2020), without heads but the projection of its vectors,
    where the contrastive loss has learned one."""

    segments = 2  # at least; a model that is read with fewer gets the rest as copies of that of titles

    def __init__(self, config: FashionBertConfig) -> None:
        super().__init__()
        self.config = config
        self.text_embeddings = TextEmbeddings(config)
        self.patch_embeddings = PatchEmbeddings(config, site=dropout_sites(config))
        self.encoder = Encoder(config)
        self.fresh: frozenset[str] = frozenset()  # names of parameters that the checkpoint it began from has not
        self._statistics_2D: torch.Tensor | None = (
            None  # of the manifest, once it is needed; no buffer: bf16 rounds those
        )
        self.feature_manifest: dict | None = None  # of the feature store it was trained on, kept in its checkpoints
        self.itc_head = ContrastiveHead(config) if config.contrastive_size else None
        self.build_heads()
        self.apply(self._initialise)

    def build_heads(self) -> None:
        """What an objective adds to the core, built before any weight is drawn; here nothing."""

    def _initialise(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    # Reading and writing ---------------------------------------------------------------------------------------------
    @classmethod
    def from_bert(cls, path: str | Path, patch_feature_size: int = 2048, **overrides) -> Self:
        """A model whose core is the Hugging Face BERT checkpoint at ``path`` (directory, hub id or an alias of
        `directories.resolve_core`), its patch side and any head the checkpoint lacks freshly initialised.

        Args:
            patch_feature_size: D. overrides: further `FashionBertConfig` fields (dropout, patches, weighting, ...).

        Raises:
            InputError: not a BERT checkpoint in safetensors; the message names file and remedy.
        """
        return directories.model_from_bert(cls, path, patch_feature_size=patch_feature_size, **overrides)

    @classmethod
    def from_pretrained(cls, path: str | Path) -> Self:
        """Read what `save_pretrained` or a run wrote, bit for bit, in eval mode: nothing drops until `train()`.

        Args:
            path: a model directory, a checkpoint, or a run directory, of which it takes the newest whole checkpoint.
                Heads that this class has not are left out.

        Raises:
            InputError: no model is there, or it does not fit its config.json.
        """
        return directories.load_model(cls, Path(path))

    @classmethod
    def warm_start(cls, path: str | Path, *, layers: int | None = None, **overrides) -> Self:
        """A float32 model to train on: every weight, head and size of what `save_pretrained` wrote to ``path``.

        Args:
            layers: keep the first so many; None: all. overrides: `FashionBertConfig` fields that hold no weights
                (dropout, layer_norm, weighting), or those of heads (alignment_head, contrastive_size), which are
                freshly drawn where they change.

        Raises:
            InputError: no such directory, or more layers than it has.
        """
        return directories.warm_model(cls, Path(path), layers=layers, **overrides)

    def save_pretrained(self, path: str | Path, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """Write config.json, model.safetensors and, where known, patch_features.json to the directory ``path``.

        Args:
            state_dict: weights to write in place of the module's own (a ZeRO engine's gathered master weights).
        """
        directories.save_model(self, Path(path), state_dict)

    # Input -----------------------------------------------------------------------------------------------------------
    def pack(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, patch_features: torch.Tensor) -> PackedPairs:
        """Padded tensors, as `FashionBertProcessor` gives them, as the packed pairs that every other method takes, on
        the model's device.

        Args:
            input_ids: (B, L) int64, [CLS] first. attention_mask: (B, L), 1 or True at tokens, 0 at padding.
            patch_features: (B, P, D) floating, image b of title b.

        Raises:
            InputError: naming the argument that the model cannot take.
        """
        self._check_padded(input_ids, attention_mask, patch_features)
        device = self.patch_embeddings.projection.weight.device
        return pack_padded(input_ids, attention_mask, patch_features).to(device)

    def _check_padded(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, patch_features: torch.Tensor
    ) -> None:
        c = self.config
        if input_ids.dim() != 2 or input_ids.numel() == 0:
            raise InputError(f"input_ids must have shape (B, L), neither of them 0, got {tuple(input_ids.shape)}")
        if attention_mask.shape != input_ids.shape:
            raise InputError(f"attention_mask must have the shape of input_ids, {tuple(input_ids.shape)}, got "
                             f"{tuple(attention_mask.shape)}")  # fmt: skip
        shape = (len(input_ids), c.patches, c.patch_feature_size)
        if patch_features.shape != shape or not patch_features.is_floating_point():
            raise InputError(f"patch_features must be floating (B, P, D) = {shape}, got {patch_features.dtype} "
                             f"{tuple(patch_features.shape)}; make them with the model's own processor")  # fmt: skip
        lengths_B = attention_mask.bool().sum(1)
        if not 1 <= lengths_B.min() <= lengths_B.max() <= c.max_position_embeddings:
            found = f"{int(lengths_B.min())} to {int(lengths_B.max())}"
            raise InputError(f"attention_mask: titles of {found} tokens, but the model takes 1 to "
                             f"{c.max_position_embeddings}; cut longer ones")  # fmt: skip
        if not 0 <= input_ids.min() <= input_ids.max() < c.vocab_size:
            raise InputError(f"input_ids: {int(input_ids.max())} is beyond the model's vocabulary of {c.vocab_size}; "
                             "use the tokenizer that lies with the model")  # fmt: skip

    # Forward ---------------------------------------------------------------------------------------------------------
    def encode_text(self, input_ids_BL: torch.Tensor, text_mask_BL: torch.Tensor | None = None) -> torch.Tensor:
        """Last hidden states (B, L, H) of text alone: what `transformers.BertModel` computes; zeros at padding.

        Args:
            text_mask_BL: True (or 1) at tokens, which come before the padding.
        """
        B, L = input_ids_BL.shape
        live_BL = torch.ones_like(input_ids_BL, dtype=torch.bool) if text_mask_BL is None else text_mask_BL.bool()
        cu_seqlens_S1 = F.pad(live_BL.sum(1).cumsum(0), (1, 0)).int()
        place_BL = torch.arange(L, device=input_ids_BL.device).expand(B, L)
        text_NH = self.text_embeddings(input_ids_BL[live_BL], place_BL[live_BL])
        hidden_NH = self.encoder(text_NH, Packing(cu_seqlens_S1, L, self._seed(text_NH.device)))
        return hidden_NH.new_zeros(B, L, hidden_NH.shape[1]).masked_scatter(live_BL[..., None], hidden_NH)

    def encode(self, pairs: PackedPairs) -> torch.Tensor:
        """Joint last hidden states (T, H) on the pairs' packed axis."""
        seed = self._seed(pairs.input_id_N.device)
        text_NH = self.text_embeddings(pairs.input_id_N, pairs.position_N, pairs.segment_N)
        segment_H = self.text_embeddings.segment.weight[IMAGE_SEGMENT]
        joint_TH = self.patch_embeddings(text_NH, pairs, segment_H, seed)
        return self.encoder(joint_TH, Packing(pairs.cu_seqlens_S1, pairs.max_seqlen, seed))

    def vectors(self, sequences: PackedPairs) -> torch.Tensor:
        """What retrieval compares: (S, E) float32 of length 1, the mean of the last hidden states of each sequence's
        tokens and patches, through the contrastive loss's projection where there is one, L2-normalised. A sequence is a
        text, patches, or both (`data.packing.pack_unmasked`).

        Mean pooling beat [CLS] in product search, and the length is taken out in training as in serving.
        """
        return self.pooled_vectors(self.encode(sequences), sequences)

    def pooled_vectors(
        self, hidden_TH: torch.Tensor, sequences: PackedPairs, last: int | None = None
    ) -> torch.Tensor:  # fmt: skip
        """`vectors`, of the last hidden states; of the ``last`` so many sequences, of which none has more than a
        photo."""
        S = len(sequences.cu_seqlens_S1) - 1 if last is None else last
        cu_seqlens_S1, first_photo = sequences.cu_seqlens_S1[-S - 1 :], max(0, len(sequences.patch_row_B) - S)
        if self.itc_head is None:
            return F.normalize(segment_sums(hidden_TH, cu_seqlens_S1), dim=1)  # a division would not change it
        sums_SH = segment_sums(hidden_TH, cu_seqlens_S1)
        token_S1 = torch.searchsorted(sequences.text_row_N, cu_seqlens_S1)  # tokens, and photos, before each sequence
        image_S1 = torch.searchsorted(sequences.patch_row_B[first_photo:], cu_seqlens_S1)
        words_SH = segment_sums(self.text_embeddings.word(sequences.input_id_N).detach(), token_S1)
        tokens_S = token_S1.diff()
        return self.itc_head(
            sums_SH / cu_seqlens_S1.diff().clamp_min(1)[:, None], words_SH / tokens_S.clamp_min(1)[:, None],
            tokens_S > 0, self.standardised(_mean_features(sequences, first_photo)), image_S1,
        )  # fmt: skip

    def standardised(self, features_ID: torch.Tensor) -> torch.Tensor:
        """(features - mean) / deviation, float32, by the statistics of the store that the model was trained on; as they
        are where it was trained on raw ones. Folded into the weights that follow, every dimension would learn at a rate
        of its own, the deviation's.

        Raises:
            InputError: the model's directory has lost its patch_features.json.
        """
        if not self.config.standardise_features:
            return features_ID
        if self._statistics_2D is None:
            found = (self.feature_manifest or {}).get("statistics") or {}
            if not found:
                raise InputError("the model reads standardised features, and nothing says of which mean and deviation; "
                                 "take its directory with patch_features.json")  # fmt: skip
            mean_D, std_D = (torch.tensor(found[name], dtype=torch.float64) for name in ("mean", "std"))
            self._statistics_2D = torch.stack([mean_D, 1 / divisors(std_D)]).float()
        self._statistics_2D = self._statistics_2D.to(features_ID.device)  # copied once, then already there
        mean_D, factor_D = self._statistics_2D
        return (features_ID.float() - mean_D) * factor_D

    @property
    def vector_size(self) -> int:
        """E, how many numbers `vectors` have."""
        return self.config.contrastive_size or self.config.hidden_size

    def side_means(self, hidden_TH: torch.Tensor, pairs: PackedPairs) -> tuple[torch.Tensor, torch.Tensor]:
        """Means (B, H) float32 of the title's and of the photo's hidden states of each pair."""
        B = len(pairs.cls_row_B)
        ends_B1, photo_B = pairs.cu_seqlens_S1[: B + 1], pairs.patch_row_B[:B].to(pairs.cu_seqlens_S1.dtype)
        offsets = torch.cat([torch.stack([ends_B1[:-1], photo_B], 1).flatten(), ends_B1[-1:]])
        means_BH = segment_sums(hidden_TH, offsets) / offsets.diff().clamp_min(1)[:, None]
        return means_BH[0::2], means_BH[1::2]

    @property
    def query_segment(self) -> int:
        """The segment of a query's tokens: its own, or that of titles in a model that has two."""
        return QUERY_SEGMENT if self.config.type_vocab_size > QUERY_SEGMENT else TEXT_SEGMENT

    def _seed(self, device: torch.device) -> torch.Tensor | None:
        """What this forward's dropout is drawn from; None where nothing drops."""
        c = self.config
        drops = max(c.hidden_dropout_prob, c.attention_probs_dropout_prob, c.patch_dropout_prob) > 0
        return draw_seed(device) if self.training and drops else None

    def encode_cls(self, pairs: PackedPairs) -> torch.Tensor:
        """[CLS] of unmasked pairs, (B, H), for inference: `encode` at position 0 without the work of the others.

        Each distinct image is embedded once, however many titles it meets.
        """
        segment_H = self.text_embeddings.segment.weight[IMAGE_SEGMENT]
        images_IPH = self.patch_embeddings.images(pairs.features_IPD, segment_H)
        text_NH = self.text_embeddings(pairs.input_id_N, pairs.position_N, pairs.segment_N)
        joint_TH = images_IPH.new_empty(pairs.rows, images_IPH.shape[2])
        joint_TH[pairs.text_row_N] = text_NH.to(joint_TH.dtype)  # which is autocast's, where that is on
        patch_P = torch.arange(images_IPH.shape[1], device=text_NH.device)
        joint_TH[pairs.patch_row_B[:, None] + patch_P] = images_IPH[pairs.image_index_B]
        return self.encoder.forward_cls(joint_TH, Packing(pairs.cu_seqlens_S1, pairs.max_seqlen))


def _mean_features(sequences: PackedPairs, first: int) -> torch.Tensor:
    """(B, D) of the features' dtype: the mean of the unmasked patches of each photo of a sequence, from the
    ``first``."""
    live_BP = ~sequences.patch_mask_BP[first:]
    share_BP = live_BP / live_BP.sum(1, keepdim=True).clamp_min(1)
    features_IPD = sequences.features_IPD
    features_BPD = features_IPD.index_select(0, sequences.image_index_B[first:])
    return torch.bmm(share_BP[:, None].to(features_BPD.dtype), features_BPD)[:, 0]
