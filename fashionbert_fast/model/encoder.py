"""The BERT encoder: post-LayerNorm Transformer layers over packed sequences.

Matmuls are the library's; what lies between them is one operator each: attention inside each sequence (with the bias
of query, key and value), bias + GELU, and bias + dropout + residual + LayerNorm. So a layer is four matmuls and four
operators each way, stores no dropout mask and pads nothing.

Shapes: T rows of the packed axis, S sequences, H hidden, F feed-forward, N heads, E = H / N, B pairs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from fashionbert_fast.errors import InputError
from fashionbert_fast.kernels import bias_gelu, dropout_add_layer_norm, packed_attention
from fashionbert_fast.kernels._linear_fork import linear_fork
from fashionbert_fast.model.config import FashionBertConfig

ACTIVATIONS = {"gelu": F.gelu, "gelu_new": functools.partial(F.gelu, approximate="tanh"), "relu": F.relu}
MATMULS = ("qkv", "attention_output", "feed_forward", "feed_forward_output")  # a layer's linear modules
SITES_A_LAYER = 3  # places that drop: attention's probabilities, its output, the feed-forward's output


@dataclass
class Packing:
    """What the encoder needs to know of a packed axis.

    cu_seqlens_S1: (S + 1,) int32; sequence s is the rows cu_seqlens_S1[s] to cu_seqlens_S1[s + 1]. max_seqlen: at
    least the length of any. seed: (1,) int64 the step's dropout is drawn from, None without dropout.
    """

    cu_seqlens_S1: torch.Tensor
    max_seqlen: int
    seed: torch.Tensor | None = None


def dropout_sites(config: FashionBertConfig) -> int:
    """How many dropout sites, from 0 on, are in the encoder's layers."""
    return SITES_A_LAYER * config.num_hidden_layers


def apex_layer_norm() -> Callable[..., torch.Tensor]:
    """NVIDIA apex's fused LayerNorm, a function of (input, weight, bias, normalized_shape, eps)."""
    try:
        from apex.normalization.fused_layer_norm import fused_layer_norm_affine  # pyright: ignore[reportMissingImports]  # optional
    except ImportError as error:
        raise InputError(
            "model.layer_norm apex: NVIDIA apex is not installed; build it from source or use fused"
        ) from error
    return fused_layer_norm_affine


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, each followed by dropout, residual and LayerNorm, as in BERT."""

    def __init__(self, config: FashionBertConfig, site: int) -> None:
        super().__init__()
        H = config.hidden_size
        self.heads = config.num_attention_heads
        self.attention_dropout = config.attention_probs_dropout_prob
        self.hidden_dropout = config.hidden_dropout_prob
        self.hidden_act = config.hidden_act
        self.site = site
        self.qkv = nn.Linear(H, 3 * H)  # query, key and value in one matmul
        self.attention_output = nn.Linear(H, H)
        self.attention_norm = nn.LayerNorm(H, eps=config.layer_norm_eps)
        self.feed_forward = nn.Linear(H, config.intermediate_size)
        self.feed_forward_output = nn.Linear(config.intermediate_size, H)
        self.feed_forward_norm = nn.LayerNorm(H, eps=config.layer_norm_eps)
        self.layer_norm = apex_layer_norm() if config.layer_norm == "apex" else None
        self.converted: dict[str, Callable] = {}  # not submodules: they share the weights of those above

    def forward(self, hidden_TH: torch.Tensor, packing: Packing) -> torch.Tensor:
        qkv_T3H, hidden_TH = self._fork("qkv", hidden_TH)
        context_TH = packed_attention(
            qkv_T3H,
            packing.cu_seqlens_S1,
            self.heads,
            max_seqlen=packing.max_seqlen,
            bias_3H=self.qkv.bias,
            dropout=self._rate(self.attention_dropout, packing),
            seed=packing.seed,
            site=self.site,
        )
        return self._after_attention(hidden_TH, context_TH, packing)

    def forward_cls(self, hidden_TH: torch.Tensor, packing: Packing) -> torch.Tensor:
        """What `forward` gives at the first row of each sequence, (B, H), computed there only; for inference."""
        H, first_B = hidden_TH.shape[1], packing.cu_seqlens_S1[:-1].long()
        weight_q, weight_kv = self.qkv.weight.split((H, 2 * H))
        bias_q, bias_kv = self.qkv.bias.split((H, 2 * H))
        query_BN1E = F.linear(hidden_TH[first_B], weight_q, bias_q).view(len(first_B), self.heads, 1, -1)
        key_value_T2H = F.linear(hidden_TH, weight_kv, bias_kv)
        lengths_B = packing.cu_seqlens_S1.diff()
        place_S = torch.arange(packing.max_seqlen, device=hidden_TH.device)
        live_BS = place_S < lengths_B[:, None]
        rows_BS = torch.where(live_BS, first_B[:, None] + place_S, 0)
        key, value = key_value_T2H[rows_BS].view(*rows_BS.shape, 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        context_BN1E = F.scaled_dot_product_attention(query_BN1E, key, value, attn_mask=live_BS[:, None, None, :])
        return self._after_attention(hidden_TH[first_B], context_BN1E.reshape(len(first_B), H), packing)

    def _after_attention(self, hidden_TH: torch.Tensor, context_TH: torch.Tensor, packing: Packing) -> torch.Tensor:
        attended_TH = self._matmul("attention_output", context_TH)
        bias_H = self.attention_output.bias
        hidden_TH = self._close(attended_TH, bias_H, hidden_TH, self.attention_norm, self.site + 1, packing)
        inner_TF, hidden_TH = self._fork("feed_forward", hidden_TH)
        fed_TH = self._matmul("feed_forward_output", self._activation(inner_TF))
        bias_H = self.feed_forward_output.bias
        return self._close(fed_TH, bias_H, hidden_TH, self.feed_forward_norm, self.site + 2, packing)

    def _close(
        self,
        x_TH: torch.Tensor,
        bias_H: torch.Tensor,
        residual_TH: torch.Tensor,
        norm: nn.LayerNorm,
        site: int,
        packing: Packing,
    ) -> torch.Tensor:
        """LayerNorm(residual + dropout(x + bias)): what ends both halves of a layer."""
        rate = self._rate(self.hidden_dropout, packing)
        if self.layer_norm is not None:  # apex's has no more than the LayerNorm: torch does the rest, and drops
            summed_TH = residual_TH + F.dropout(x_TH + bias_H, rate)
            return self.layer_norm(summed_TH, norm.weight, norm.bias, norm.normalized_shape, norm.eps)
        return dropout_add_layer_norm(
            x_TH,
            residual_TH,
            norm.weight,
            norm.bias,
            bias_H=bias_H,
            eps=norm.eps,
            dropout=rate,
            seed=packing.seed,
            site=site,
        )

    def _activation(self, inner_TF: torch.Tensor) -> torch.Tensor:
        if self.hidden_act == "gelu":
            return bias_gelu(inner_TF, self.feed_forward.bias)
        return ACTIVATIONS[self.hidden_act](inner_TF + self.feed_forward.bias)

    def _matmul(self, name: str, x_TK: torch.Tensor) -> torch.Tensor:
        """x @ weight.T of the linear module ``name``, by what it was converted to; its bias is the next operator's."""
        converted = self.converted.get(name)
        return F.linear(x_TK, getattr(self, name).weight) if converted is None else converted(x_TK)

    def _fork(self, name: str, x_TK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`_matmul`, and ``x_TK`` for the residual that it is as well."""
        if name in self.converted:
            return self._matmul(name, x_TK), x_TK
        return linear_fork(x_TK, getattr(self, name).weight)

    def _rate(self, dropout: float, packing: Packing) -> float:
        return dropout if self.training and packing.seed is not None else 0.0


class Encoder(nn.Module):
    """``num_hidden_layers`` layers."""

    def __init__(self, config: FashionBertConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            EncoderLayer(config, site=SITES_A_LAYER * i) for i in range(config.num_hidden_layers)
        )

    def forward(self, hidden_TH: torch.Tensor, packing: Packing) -> torch.Tensor:
        for layer in self.layers:
            hidden_TH = layer(hidden_TH, packing)
        return hidden_TH

    def convert_matmuls(self, convert: Callable[[nn.Linear], Callable]) -> None:
        """Have ``convert(linear)`` compute each matmul of `forward` from now on.

        Args:
            convert: is given bias-free linear modules that hold the layers' own weights, so that parameters and
                checkpoints stay as they are. A weight is shared as an object: what replaces it later is not seen.
        """
        for layer in self.layers:
            assert isinstance(layer, EncoderLayer)
            for name in MATMULS:
                linear = getattr(layer, name)
                bare = nn.Linear(linear.in_features, linear.out_features, bias=False, device="meta")
                bare.weight = linear.weight
                layer.converted[name] = convert(bare)

    def forward_cls(self, hidden_TH: torch.Tensor, packing: Packing) -> torch.Tensor:
        """Last hidden state of each sequence's first row, (B, H): the last layer's work shrinks to that row."""
        for layer in self.layers[:-1]:
            hidden_TH = layer(hidden_TH, packing)
        last = self.layers[-1]
        assert isinstance(last, EncoderLayer)
        return last.forward_cls(hidden_TH, packing)
