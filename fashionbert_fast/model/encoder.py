"""The BERT encoder: post-LayerNorm Transformer layers over one joint sequence, attention by SDPA.

Shapes: B pairs, S = L + P positions, H hidden, N heads, E = H / N.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import nn

from fashionbert_fast.model.config import FashionBertConfig

ACTIVATIONS = {"gelu": F.gelu, "gelu_new": functools.partial(F.gelu, approximate="tanh"), "relu": F.relu}


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, each followed by dropout, residual and LayerNorm, as in BERT."""

    def __init__(self, config: FashionBertConfig) -> None:
        super().__init__()
        H = config.hidden_size
        self.heads = config.num_attention_heads
        self.attention_dropout = config.attention_probs_dropout_prob
        self.activation = ACTIVATIONS[config.hidden_act]
        self.qkv = nn.Linear(H, 3 * H)  # query, key and value in one product
        self.attention_output = nn.Linear(H, H)
        self.attention_norm = nn.LayerNorm(H, eps=config.layer_norm_eps)
        self.feed_forward = nn.Linear(H, config.intermediate_size)
        self.feed_forward_output = nn.Linear(config.intermediate_size, H)
        self.feed_forward_norm = nn.LayerNorm(H, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def attention(self, hidden_BSH: torch.Tensor, attention_mask_B11S: torch.Tensor | None) -> torch.Tensor:
        B, S, H = hidden_BSH.shape
        query, key, value = self.qkv(hidden_BSH).view(B, S, 3, self.heads, H // self.heads).permute(2, 0, 3, 1, 4)
        dropout = self.attention_dropout if self.training else 0.0
        context_BNSE = F.scaled_dot_product_attention(
            query, key, value, attn_mask=attention_mask_B11S, dropout_p=dropout
        )
        return self.attention_output(context_BNSE.transpose(1, 2).reshape(B, S, H))

    def forward(self, hidden_BSH: torch.Tensor, attention_mask_B11S: torch.Tensor | None) -> torch.Tensor:
        hidden_BSH = self.attention_norm(hidden_BSH + self.dropout(self.attention(hidden_BSH, attention_mask_B11S)))
        inner = self.activation(self.feed_forward(hidden_BSH))
        return self.feed_forward_norm(hidden_BSH + self.dropout(self.feed_forward_output(inner)))


class Encoder(nn.Module):
    """``num_hidden_layers`` layers. The mask is bool, True where a position may be attended to."""

    def __init__(self, config: FashionBertConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_hidden_layers))

    def forward(self, hidden_BSH: torch.Tensor, attention_mask_BS: torch.Tensor | None) -> torch.Tensor:
        mask = None if attention_mask_BS is None else attention_mask_BS[:, None, None, :]
        for layer in self.layers:
            hidden_BSH = layer(hidden_BSH, mask)
        return hidden_BSH
