"""Names and shapes of a CrossViT's parameters, from its numbers alone: weights are checked before MindSpore starts."""

from __future__ import annotations

from .counts import block, linear, norm, patch_embed
from .crossvit_config import NUMERICS, CrossViTConfig
from .family import Shapes


def parameter_shapes(config: CrossViTConfig, num_classes: int = 1000) -> Shapes:
    """The shape of every parameter by its official name."""
    found: Shapes = {}
    for i in range(2):
        dim = config.embed_dim[i]
        found[f"pos_embed.{i}"] = (1, config.tokens[i], dim)
        found[f"cls_token.{i}"] = (1, 1, dim)
        found |= _patch_embed(config, i)
        found |= norm(f"norm.{i}", dim) | linear(f"head.{i}", dim, num_classes)
    for k in range(len(config.depth)):
        found |= _encoder(config, k)
    return found


def _patch_embed(config: CrossViTConfig, branch: int) -> Shapes:
    dim, patch = config.embed_dim[branch], config.patch_size[branch]
    stem_bias = NUMERICS[config.numerics].stem_bias  # MindCV's stem has no biases
    return patch_embed(f"patch_embed.{branch}.proj", dim, patch, config.multi_conv, stem_bias)


def _encoder(config: CrossViTConfig, k: int) -> Shapes:
    found: Shapes = {}
    for i in range(2):
        own, other = config.embed_dim[i], config.embed_dim[1 - i]
        for b in range(config.depth[k][i]):
            found |= block(f"blocks.{k}.blocks.{i}.{b}", own, config.hidden_dim[i], config.qkv_bias)
        found |= _token_projection(f"blocks.{k}.projs.{i}", own, other)
        stacked = config.depth[k][2]
        for name in [f"fusion.{i}"] if stacked == 0 else [f"fusion.{i}.{b}" for b in range(stacked)]:
            found |= _cross_attention(f"blocks.{k}.{name}", other, config.qkv_bias)
        found |= _token_projection(f"blocks.{k}.revert_projs.{i}", other, own)
    return found


def _cross_attention(name: str, dim: int, qkv_bias: bool) -> Shapes:
    found = norm(f"{name}.norm1", dim) | linear(f"{name}.attn.proj", dim, dim)
    for layer in ("wq", "wk", "wv"):
        found |= linear(f"{name}.attn.{layer}", dim, dim, qkv_bias)
    return found


def _token_projection(name: str, in_dim: int, out_dim: int) -> Shapes:
    return norm(f"{name}.0", in_dim) | linear(f"{name}.2", in_dim, out_dim)
