"""What a CrossViT computes and keeps, counted from its numbers alone."""

from __future__ import annotations

from .crossvit_config import CrossViTConfig


def macs(config: CrossViTConfig, num_classes: int = 1000) -> int:
    """Multiply-accumulates of one image: convolutions, linear layers and the attention products.

    Norms, activations, the resize and additions are not counted, as in the paper's "FLOPs" (table 2).
    """
    total = 0
    for i in range(2):
        total += _embed_macs(config, i) + config.embed_dim[i] * num_classes
    for triple in config.depth:
        for i in range(2):
            total += triple[i] * _block_macs(config, i)
        total += _fusion_macs(config, triple[2])
    return total


def _embed_macs(config: CrossViTConfig, branch: int) -> int:
    dim, patch = config.embed_dim[branch], config.patch_size[branch]
    grid = config.img_size[branch] // patch
    if not config.multi_conv:
        return grid**2 * dim * 3 * patch**2
    stride = 3 if patch == 12 else 2
    last = grid**2 * dim * 9 * (dim // 2)
    middle_grid = grid if patch == 12 else grid * 2
    middle = middle_grid**2 * (dim // 2) * 9 * (dim // 4)
    first = (middle_grid * stride) ** 2 * (dim // 4) * 3 * 49
    return first + middle + last


def _block_macs(config: CrossViTConfig, branch: int) -> int:
    n, c, hidden = config.tokens[branch], config.embed_dim[branch], config.hidden_dim[branch]
    return n * (4 * c * c + 2 * c * hidden) + 2 * n * n * c


def _fusion_macs(config: CrossViTConfig, blocks: int) -> int:
    (small, large), tokens = config.embed_dim, config.tokens
    if config.fusion == "cross_attention":
        return sum(_cross_macs(config, i, blocks) for i in range(2))
    if config.fusion == "all_attention":
        joint = sum(tokens)
        projections = sum(n * _projection_macs(config, c, large) for n, c in zip(tokens, config.embed_dim, strict=True))
        return projections + 4 * joint * large * large + 2 * joint * joint * large
    projected = {"none": 0, "class_token": 1, "pairwise": tokens[0]}[config.fusion]
    return projected * _projection_macs(config, small, large)


def _projection_macs(config: CrossViTConfig, dim: int, common: int) -> int:
    """One token to another width and back."""
    return 0 if config.identity_projs and dim == common else 2 * dim * common


def _cross_macs(config: CrossViTConfig, branch: int, blocks: int) -> int:
    """The class token of `branch` attends to the other branch's patches; later blocks see that one token only."""
    other = 1 - branch
    c, n = config.embed_dim[other], config.patches[other] + 1
    first = 2 * c * c + 2 * n * c * c + 2 * n * c
    later = 4 * c * c + 2 * c
    return _projection_macs(config, config.embed_dim[branch], c) + first + max(blocks - 1, 0) * later


def saved_activations(config: CrossViTConfig) -> int:
    """Numbers that one image's forward pass must keep for the gradient, at least.

    Counted per block and token: both norms' outputs and normalised inputs (4 C), q, k and v (3 C), the attention's
    probabilities (heads x tokens) and output (C), the residual stream (2 C), and the hidden layer before and after
    its GELU. What a backend keeps besides, and its work space, come on top.
    """
    total = 0
    for triple in config.depth:
        for i in range(2):
            n, c = config.tokens[i], config.embed_dim[i]
            total += triple[i] * n * (10 * c + 2 * config.hidden_dim[i] + config.num_heads[i] * n)
        total += _saved_by_fusion(config)
    return total


def _saved_by_fusion(config: CrossViTConfig) -> int:
    """Of one encoder. A projection keeps its norm's output and normalised input, and its GELU's output, per token."""
    tokens, dims, common = config.tokens, config.embed_dim, config.embed_dim[1]
    if config.fusion == "cross_attention":
        return sum(4 * n * c for n, c in zip(tokens, dims, strict=True))  # norm, keys and values
    if config.fusion == "all_attention":
        projections = sum(n * 3 * (c + common) for n, c in zip(tokens, dims, strict=True))
        joint = sum(tokens)
        return projections + joint * (8 * common + config.num_heads[1] * joint)
    return tokens[0] * 3 * (dims[0] + common) if config.fusion == "pairwise" else 0
