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

    def cls_attention(self, hidden_BSH: torch.Tensor, attention_mask_B11S: torch.Tensor | None) -> torch.Tensor:
        """Attention of position 0 alone to all positions: (B, 1, H)."""
        B, S, H = hidden_BSH.shape
        weight_q, weight_kv = self.qkv.weight.split((H, 2 * H))
        bias_q, bias_kv = self.qkv.bias.split((H, 2 * H))
        query = F.linear(hidden_BSH[:, :1], weight_q, bias_q).view(B, 1, self.heads, H // self.heads).transpose(1, 2)
        key, value = F.linear(hidden_BSH, weight_kv, bias_kv).view(B, S, 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        context_BN1E = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask_B11S)
        return self.attention_output(context_BN1E.transpose(1, 2).reshape(B, 1, H))

    def _after_attention(self, hidden: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        hidden = self.attention_norm(hidden + self.dropout(attended))
        inner = self.activation(self.feed_forward(hidden))
        return self.feed_forward_norm(hidden + self.dropout(self.feed_forward_output(inner)))

    def forward(self, hidden_BSH: torch.Tensor, attention_mask_B11S: torch.Tensor | None) -> torch.Tensor:
        return self._after_attention(hidden_BSH, self.attention(hidden_BSH, attention_mask_B11S))

    def forward_cls(self, hidden_BSH: torch.Tensor, attention_mask_B11S: torch.Tensor | None) -> torch.Tensor:
        """What `forward` gives at position 0, (B, H), computed there only; for inference, without attention dropout."""
        return self._after_attention(hidden_BSH[:, :1], self.cls_attention(hidden_BSH, attention_mask_B11S))[:, 0]


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

    def forward_cls(self, hidden_BSH: torch.Tensor, attention_mask_BS: torch.Tensor) -> torch.Tensor:
        """Last hidden state of position 0 alone, (B, H): the last layer's work shrinks to one position a pair."""
        mask = attention_mask_BS[:, None, None, :]
        for layer in self.layers[:-1]:
            hidden_BSH = layer(hidden_BSH, mask)
        return self.layers[-1].forward_cls(hidden_BSH, mask)
