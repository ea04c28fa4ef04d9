"""What a CrossViT computes and keeps, counted from its numbers alone."""

from __future__ import annotations

from .counts import block_alive, block_macs, block_saved, input_alive, patch_embed_macs, stem_alive
from .crossvit_config import FEATURES, TOKEN_WIDTH, CrossViTConfig, soft_split_sides


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
    if config.hybrid_backbone:
        return _token_to_token_macs(config, branch)
    patch = config.patch_size[branch]
    return patch_embed_macs(config.embed_dim[branch], patch, config.img_size[branch] // patch, config.multi_conv)


def _token_to_token_macs(config: CrossViTConfig, branch: int) -> int:
    width, patch = TOKEN_WIDTH, config.patch_size[branch]
    sides = soft_split_sides(config.img_size[branch], patch)
    total = sides[2] ** 2 * 9 * width * config.embed_dim[branch]
    for side, in_dim in zip(sides, (49 * 3, 9 * width), strict=False):
        n = side**2
        total += n * 3 * width * (in_dim + width)  # q, k, v; proj and the MLP
        if config.hybrid_backbone == "t2t":
            total += 2 * n * n * width
        else:
            total += n * FEATURES * (2 * width + 1 + 2 * width)  # features, their sum, products with the values
    return total


def _block_macs(config: CrossViTConfig, branch: int) -> int:
    return block_macs(config.tokens[branch], config.embed_dim[branch], config.hidden_dim[branch])


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

    What a backend keeps besides, and its work space, come on top.
    """
    total = sum(_saved_by_embedding(config, i) for i in range(2))
    for triple in config.depth:
        for i in range(2):
            n, c = config.tokens[i], config.embed_dim[i]
            total += triple[i] * block_saved(n, c, config.hidden_dim[i], config.num_heads[i])
        total += _saved_by_fusion(config)
    return total


def _saved_by_embedding(config: CrossViTConfig, branch: int) -> int:
    """Of a token-to-token embedding: windows and their norms, q, k, v, attention, two layers of the MLP."""
    if not config.hybrid_backbone:
        return 0
    sides = soft_split_sides(config.img_size[branch], config.patch_size[branch])
    total = sides[2] ** 2 * 9 * TOKEN_WIDTH
    for side, in_dim in zip(sides, (49 * 3, 9 * TOKEN_WIDTH), strict=False):
        n = side**2
        mixing = n if config.hybrid_backbone == "t2t" else 4 * FEATURES
        total += n * (2 * in_dim + 10 * TOKEN_WIDTH + mixing)
    return total


def alive_activations(config: CrossViTConfig) -> int:
    """Numbers that one image's forward pass has at once, at the most: a block of each branch, and what they read.

    The branches run side by side. With the composed operators each picture more took 17.9 MB for crossvit_9, 15.1 for
    tiny, 23.8 for small, 23.4 for 15, 26.7 for 18 and 23.6 for 9_dagger: 1.00 to 1.07 times the count.
    """
    total = input_alive(config.input_size)
    for n, c, heads, size, patch in zip(
        config.tokens, config.embed_dim, config.num_heads, config.img_size, config.patch_size, strict=True
    ):
        total += block_alive(n, c, heads)
        if config.hybrid_backbone:
            first = soft_split_sides(size, patch)[0] ** 2
            total += block_alive(first, TOKEN_WIDTH, 1) if config.hybrid_backbone == "t2t" else first * 4 * 147
        elif config.multi_conv:
            total += stem_alive(c, patch, size)
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
