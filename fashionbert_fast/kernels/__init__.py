"""The operators: one file each, reading formula, reference, registration, public function."""

from fashionbert_fast.kernels.adaptive_loss import adaptive_loss
from fashionbert_fast.kernels.bias_gelu import bias_gelu
from fashionbert_fast.kernels.dropout_add_layer_norm import dropout_add_layer_norm
from fashionbert_fast.kernels.linear_cross_entropy import linear_cross_entropy
from fashionbert_fast.kernels.linear_patch_kld import linear_patch_kld
from fashionbert_fast.kernels.masked_patch_embed import PackedRows, masked_patch_embed
from fashionbert_fast.kernels.min_norm_weights import min_norm_weights
from fashionbert_fast.kernels.packed_attention import packed_attention
from fashionbert_fast.kernels.patch_kld import patch_kld

__all__ = [
    "PackedRows",
    "adaptive_loss",
    "bias_gelu",
    "dropout_add_layer_norm",
    "linear_cross_entropy",
    "linear_patch_kld",
    "masked_patch_embed",
    "min_norm_weights",
    "packed_attention",
    "patch_kld",
]
