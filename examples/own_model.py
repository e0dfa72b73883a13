"""Your own model around the kernels: a transformer layer on packed sequences, and a toy task that it learns.

    python examples/own_model.py --steps 300

The kernels are functions of plain tensors, with gradients, on CPU and GPU. Here they make a layer of BERT's kind:
sequences of any lengths lie one after another on one axis, without padding, and each operator takes its matmul's bias
with it.

Shapes: S1 = S + 1 sequences' bounds, T tokens of all sequences, H hidden, F hidden of the feed-forward.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import nn

from fashionbert_fast.kernels import bias_gelu, dropout_add_layer_norm, packed_attention
from fashionbert_fast.kernels.dropout import draw_seed

VOCABULARY, LONGEST = 16, 24


class PackedLayer(nn.Module):
    """Attention and feed-forward, each with dropout, residual and LayerNorm. ``site`` numbers the places that drop: one
    seed a step serves them all, and the backward draws the same masks again instead of keeping them."""

    def __init__(self, hidden: int, heads: int, dropout: float, site: int) -> None:
        super().__init__()
        self.heads, self.dropout, self.site = heads, dropout, site
        self.qkv = nn.Linear(hidden, 3 * hidden)
        self.attention_output = nn.Linear(hidden, hidden)
        self.attention_norm = nn.LayerNorm(hidden)
        self.feed_forward = nn.Linear(hidden, 4 * hidden)
        self.feed_forward_output = nn.Linear(4 * hidden, hidden)
        self.feed_forward_norm = nn.LayerNorm(hidden)

    def forward(self, x_TH: torch.Tensor, cu_seqlens_S1: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
        p = self.dropout if self.training else 0.0
        # The matmuls go without their bias: the operator behind each adds it on the way in.
        attended_TH = packed_attention(
            F.linear(x_TH, self.qkv.weight), cu_seqlens_S1, self.heads, max_seqlen=LONGEST, bias_3H=self.qkv.bias,
            dropout=p, seed=seed, site=self.site,
        )  # fmt: skip
        x_TH = self.add_norm(attended_TH, self.attention_output, x_TH, self.attention_norm, p, seed, self.site + 1)
        wide_TF = bias_gelu(F.linear(x_TH, self.feed_forward.weight), self.feed_forward.bias)
        return self.add_norm(wide_TF, self.feed_forward_output, x_TH, self.feed_forward_norm, p, seed, self.site + 2)

    @staticmethod
    def add_norm(
        y: torch.Tensor, linear: nn.Linear, residual_TH: torch.Tensor, norm: nn.LayerNorm, p: float,
        seed: torch.Tensor, site: int,
    ) -> torch.Tensor:  # fmt: skip
        """LayerNorm(residual + dropout(linear(y)))."""
        return dropout_add_layer_norm(
            F.linear(y, linear.weight), residual_TH, norm.weight, norm.bias, bias_H=linear.bias, eps=norm.eps,
            dropout=p, seed=seed, site=site,
        )  # fmt: skip


class Classifier(nn.Module):
    """Two layers and a decision at the first token of each sequence, (S, 2)."""

    def __init__(self, hidden: int = 32, heads: int = 4, layers: int = 2, dropout: float = 0.1) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, hidden)
        self.layers = nn.ModuleList(PackedLayer(hidden, heads, dropout, site=3 * i) for i in range(layers))
        self.decision = nn.Linear(hidden, 2)

    def forward(self, token_T: torch.Tensor, cu_seqlens_S1: torch.Tensor) -> torch.Tensor:
        x_TH, seed = self.embedding(token_T), draw_seed(token_T.device)
        for layer in self.layers:
            x_TH = layer(x_TH, cu_seqlens_S1, seed)
        return self.decision(x_TH[cu_seqlens_S1[:-1].long()])


def draw_batch(sequences: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(tokens (T,), bounds (S1,) int32, labels (S,)): does token 0 stand anywhere in the sequence?"""
    lengths = torch.randint(4, LONGEST + 1, (sequences,)).tolist()
    parts = [torch.randint(VOCABULARY, (length,)) for length in lengths]
    label_S = torch.tensor([int((part == 0).any()) for part in parts])
    bounds_S1 = F.pad(torch.tensor(lengths).cumsum(0), (1, 0)).int()
    return torch.cat(parts).to(device), bounds_S1.to(device), label_S.to(device)


def main(arguments: list[str] | None = None) -> float:
    """Train and report; returns the share of fresh sequences judged rightly."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, help="(default: %(default)s)")
    args = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    model = Classifier().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(1, args.steps + 1):
        token_T, cu_seqlens_S1, label_S = draw_batch(64, device)
        loss = F.cross_entropy(model(token_T, cu_seqlens_S1), label_S)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0 or step == args.steps:
            print(f"step {step}: loss {loss.item():.3f}")
    model.eval()
    with torch.inference_mode():
        token_T, cu_seqlens_S1, label_S = draw_batch(1000, device)
        right = (model(token_T, cu_seqlens_S1).argmax(1) == label_S).float().mean().item()
    print(f"{right:.1%} of 1000 fresh sequences judged rightly")
    return right


if __name__ == "__main__":
    main()
