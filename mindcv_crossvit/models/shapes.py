"""Names and shapes of a CrossViT's parameters, from its numbers alone: weights are checked before MindSpore starts."""

from __future__ import annotations

from .counts import block, linear, norm, patch_embed
from .crossvit_config import FEATURES, NUMERICS, TOKEN_WIDTH, CrossViTConfig
from .family import Shapes


def parameter_shapes(config: CrossViTConfig, num_classes: int = 1000) -> Shapes:
    """The shape of every parameter by its official name."""
    found: Shapes = {}
    for i in range(2):
        dim = config.embed_dim[i]
        found[f"pos_embed.{i}"] = (1, config.tokens[i], dim)
        if config.cls_token:
            found[f"cls_token.{i}"] = (1, 1, dim)
        found |= _patch_embed(config, i)
        found |= norm(f"norm.{i}", dim) | linear(f"head.{i}", dim, num_classes)
    for k in range(len(config.depth)):
        found |= _encoder(config, k)
    return found


def _patch_embed(config: CrossViTConfig, branch: int) -> Shapes:
    if config.hybrid_backbone:
        return _token_to_token(f"patch_embed.{branch}", config.hybrid_backbone, config.embed_dim[branch])
    dim, patch = config.embed_dim[branch], config.patch_size[branch]
    stem_bias = NUMERICS[config.numerics].stem_bias  # MindCV's stem has no biases
    return patch_embed(f"patch_embed.{branch}.proj", dim, patch, config.multi_conv, stem_bias)


def _token_to_token(name: str, kind: str, dim: int) -> Shapes:
    width = TOKEN_WIDTH
    found = linear(f"{name}.project", 9 * width, dim)
    for layer, in_dim in ((f"{name}.attention1", 49 * 3), (f"{name}.attention2", 9 * width)):
        found |= norm(f"{layer}.norm1", in_dim) | norm(f"{layer}.norm2", width)
        if kind == "t2t":
            found |= linear(f"{layer}.attn.qkv", in_dim, 3 * width, bias=False)
            found |= linear(f"{layer}.attn.proj", width, width)
        else:
            found |= {f"{layer}.w": (FEATURES, width)} | linear(f"{layer}.kqv", in_dim, 3 * width)
            found |= linear(f"{layer}.proj", width, width)
        for part in ("fc1", "fc2") if kind == "t2t" else ("0", "2"):
            found |= linear(f"{layer}.mlp.{part}", width, width)
    return found


def _encoder(config: CrossViTConfig, k: int) -> Shapes:
    found: Shapes = {}
    for i in range(2):
        for b in range(config.depth[k][i]):
            name = f"blocks.{k}.blocks.{i}.{b}"
            found |= block(name, config.embed_dim[i], config.hidden_dim[i], config.qkv_bias)
    return found | _FUSIONS[config.fusion](config, f"blocks.{k}", config.depth[k][2])


def _no_fusion(config: CrossViTConfig, name: str, stacked: int) -> Shapes:
    del config, name, stacked
    return {}


def _by_cross_attention(config: CrossViTConfig, name: str, stacked: int) -> Shapes:
    found: Shapes = {}
    for i in range(2):
        own, other = config.embed_dim[i], config.embed_dim[1 - i]
        found |= _projections(config, name, i, own, other)
        for layer in [f"fusion.{i}"] if stacked == 0 else [f"fusion.{i}.{b}" for b in range(stacked)]:
            found |= _cross_attention(f"{name}.{layer}", other, config.qkv_bias)
    return found


def _by_all_attention(config: CrossViTConfig, name: str, stacked: int) -> Shapes:
    del stacked
    common = config.embed_dim[1]
    found = _attention(f"{name}.fusion", common, config.qkv_bias)
    for i in range(2):
        found |= _projections(config, name, i, config.embed_dim[i], common)
    return found


def _by_sums(config: CrossViTConfig, name: str, stacked: int) -> Shapes:
    del stacked
    return _projections(config, name, 0, *config.embed_dim)


_FUSIONS = {
    "none": _no_fusion,
    "all_attention": _by_all_attention,
    "class_token": _by_sums,
    "pairwise": _by_sums,
    "cross_attention": _by_cross_attention,
}


def _projections(config: CrossViTConfig, name: str, i: int, dim: int, common: int) -> Shapes:
    """To another width and back; nothing between equal ones where config.identity_projs."""
    if config.identity_projs and dim == common:
        return {}
    there = _token_projection(f"{name}.projs.{i}", dim, common)
    return there | _token_projection(f"{name}.revert_projs.{i}", common, dim)


def _attention(name: str, dim: int, qkv_bias: bool) -> Shapes:
    attention = linear(f"{name}.attn.qkv", dim, 3 * dim, qkv_bias) | linear(f"{name}.attn.proj", dim, dim)
    return norm(f"{name}.norm1", dim) | attention


def _cross_attention(name: str, dim: int, qkv_bias: bool) -> Shapes:
    found = norm(f"{name}.norm1", dim) | linear(f"{name}.attn.proj", dim, dim)
    for layer in ("wq", "wk", "wv"):
        found |= linear(f"{name}.attn.{layer}", dim, dim, qkv_bias)
    return found


def _token_projection(name: str, in_dim: int, out_dim: int) -> Shapes:
    return norm(f"{name}.0", in_dim) | linear(f"{name}.2", in_dim, out_dim)
