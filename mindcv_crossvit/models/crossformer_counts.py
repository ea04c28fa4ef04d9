"""Parameters, multiply-accumulates and kept activations of a CrossFormer, from its numbers alone."""

from __future__ import annotations

from collections.abc import Iterator

from .counts import input_alive, linear, norm
from .crossformer_config import CrossFormerConfig, scale_widths
from .crossformer_groups import Groups, block_groups
from .family import Shapes


def macs(config: CrossFormerConfig, num_classes: int = 1000) -> int:
    """Multiply-accumulates of one picture: convolutions, linear layers (the position bias's, too), attention products.

    Norms, softmax, activations and additions are not counted, as in the papers' "FLOPs". Padding is computed on, and
    counted, as in the official code.
    """
    return backbone_macs(config, config.img_size, config.img_size) + config.dim(len(config.depths) - 1) * num_classes


def backbone_macs(config: CrossFormerConfig, height: int, width: int) -> int:
    """The same of the dense backbone for an input of height x width pixels."""
    total = 0
    for stage, (rows, columns) in enumerate(grids(config, height, width)):
        dim, hidden = config.dim(stage), config.hidden_dim(stage)
        kernels, channels = (config.merge_size[stage - 1], dim // 2) if stage else (config.patch_size, 3)
        scales = zip(kernels, scale_widths(kernels, dim), strict=True)
        total += rows * columns * sum(k * k * channels * out for k, out in scales)
        for block in range(config.depths[stage]):
            groups = block_groups(config, stage, block, rows, columns)
            total += _attention_macs(groups, dim, config.num_heads[stage]) + rows * columns * 2 * dim * hidden
            total += 9 * dim * rows * columns * config.has_acl(stage, block)
    return total


def grids(config: CrossFormerConfig, height: int, width: int) -> Iterator[tuple[int, int]]:
    """Rows and columns of tokens in each stage."""
    for stage in range(len(config.depths)):
        cell = config.patch_size[0] * 2**stage
        yield height // cell, width // cell


def _attention_macs(groups: Groups, dim: int, heads: int) -> int:
    tokens, bias_dim = groups.rows * groups.columns, dim // 16
    table = (2 * groups.side - 1) ** 2 * (2 * bias_dim + 2 * bias_dim**2 + bias_dim * heads)
    return tokens * 4 * dim * dim + 2 * tokens * groups.tokens * dim + table


def saved_activations(config: CrossFormerConfig) -> int:
    """Numbers that one picture's forward pass keeps for the gradient.

    Per block and token: both norms' inputs and outputs (4 C), q, k and v (3 C), the attention's output (2 C), a branch
    (C), the hidden layer twice; and scores and probabilities, heads x G^2 each for every token of the padded grid. A
    cooling layer keeps 8 C, a cross-scale embedding what its kernels read. Measured with the composed operators, each
    picture more took 23.3 M numbers for crossformer_t and 49.5 M for crossformerpp_s: 1.00 and 1.05 times the count.
    """
    total = 0
    for stage, (rows, columns) in enumerate(grids(config, config.img_size, config.img_size)):
        dim, tokens = config.dim(stage), rows * columns
        total += tokens * _read_by_embedding(config, stage)
        for block in range(config.depths[stage]):
            groups = block_groups(config, stage, block, rows, columns)
            total += tokens * (10 * dim + 2 * config.hidden_dim(stage) + 8 * dim * config.has_acl(stage, block))
            total += 2 * groups.rows * groups.columns * groups.tokens * config.num_heads[stage]
    return total


def alive_activations(config: CrossFormerConfig) -> int:
    """Numbers that one picture's forward pass has at once, at the most: in the first stage, by far the largest.

    Ten times its hidden layer. With the composed operators each picture more took 32.7 MB for crossformer_t and 38.5
    for crossformerpp_s: 0.90 and 1.06 times the count.
    """
    rows, columns = next(grids(config, config.img_size, config.img_size))
    return input_alive(config.img_size) + 10 * rows * columns * config.hidden_dim(0)


def _read_by_embedding(config: CrossFormerConfig, stage: int) -> int:
    """Numbers that the cross-scale embedding before a stage reads for each of its tokens, its norm included."""
    if stage == 0:
        step, kernels, channels = config.patch_size[0], config.patch_size, 3
        # a kernel of many patches reads one column of them at a time
        reads = (k * k if k < 4 * step else k * step for k in kernels)
        return channels * sum(reads) + 2 * config.embed_dim
    channels = config.dim(stage - 1)
    return channels * (sum(k * k for k in config.merge_size[stage - 1]) + 8)


def parameter_shapes(config: CrossFormerConfig, num_classes: int = 1000) -> Shapes:
    """The shape of every parameter by its official name."""
    last = config.dim(len(config.depths) - 1)
    return backbone_shapes(config) | norm("norm", last) | linear("head", last, num_classes)


def backbone_shapes(config: CrossFormerConfig) -> Shapes:
    """The same of the dense backbone: without `norm` and `head`."""
    found = _scales("patch_embed.projs", config.patch_size, 3, config.embed_dim)
    found |= norm("patch_embed.norm", config.embed_dim)
    for stage, depth in enumerate(config.depths):
        for block in range(depth):
            found |= _block(config, stage, block)
        if stage < len(config.depths) - 1:
            name, dim = f"layers.{stage}.downsample", config.dim(stage)
            found |= _scales(f"{name}.reductions", config.merge_size[stage], dim, 2 * dim) | norm(f"{name}.norm", dim)
    return found


def _block(config: CrossFormerConfig, stage: int, block: int) -> Shapes:
    name, dim, hidden = f"layers.{stage}.blocks.{block}", config.dim(stage), config.hidden_dim(stage)
    found = norm(f"{name}.norm1", dim) | norm(f"{name}.norm2", dim)
    found |= linear(f"{name}.attn.qkv", dim, 3 * dim, config.qkv_bias) | linear(f"{name}.attn.proj", dim, dim)
    found |= _position_bias(f"{name}.attn.pos", dim // 16, config.num_heads[stage])
    found |= linear(f"{name}.mlp.fc1", dim, hidden) | linear(f"{name}.mlp.fc2", hidden, dim)
    if config.has_acl(stage, block):
        found |= {f"{name}.ex_conv.weight": (dim, 1, 3, 3), f"{name}.ex_conv.bias": (dim,)}
        found |= norm(f"{name}.ex_ln", dim)
    return found


def _position_bias(name: str, dim: int, heads: int) -> Shapes:
    found = linear(f"{name}.pos_proj", 2, dim)
    for layer, out_dim in (("pos1", dim), ("pos2", dim), ("pos3", heads)):
        found |= norm(f"{name}.{layer}.0", dim) | linear(f"{name}.{layer}.2", dim, out_dim)
    return found


def _scales(name: str, kernels: tuple[int, ...], channels: int, width: int) -> Shapes:
    found: Shapes = {}
    for i, (kernel, out) in enumerate(zip(kernels, scale_widths(kernels, width), strict=True)):
        found |= {f"{name}.{i}.weight": (out, channels, kernel, kernel), f"{name}.{i}.bias": (out,)}
    return found
