"""Shapes and multiply-accumulates of the parts that several families are made of, without MindSpore."""

from __future__ import annotations

from .family import Shapes


def linear(name: str, in_dim: int, out_dim: int, bias: bool = True) -> Shapes:
    """A linear layer."""
    weight: Shapes = {f"{name}.weight": (out_dim, in_dim)}
    return weight | ({f"{name}.bias": (out_dim,)} if bias else {})


def norm(name: str, dim: int) -> Shapes:
    """A LayerNorm."""
    return {f"{name}.weight": (dim,), f"{name}.bias": (dim,)}


def patch_embed(name: str, dim: int, patch: int, multi_conv: bool, stem_bias: bool = True) -> Shapes:
    """A patch embedding: one convolution, or the three of the dagger variants."""
    if not multi_conv:
        return {f"{name}.weight": (dim, 3, patch, patch), f"{name}.bias": (dim,)}
    found: Shapes = {}
    for k, (inner, outer, kernel) in enumerate(((3, dim // 4, 7), (dim // 4, dim // 2, 3), (dim // 2, dim, 3))):
        found[f"{name}.{2 * k}.weight"] = (outer, inner, kernel, kernel)
        if stem_bias:
            found[f"{name}.{2 * k}.bias"] = (outer,)
    return found


def block(name: str, dim: int, hidden: int, qkv_bias: bool) -> Shapes:
    """A transformer block."""
    attention = linear(f"{name}.attn.qkv", dim, 3 * dim, qkv_bias) | linear(f"{name}.attn.proj", dim, dim)
    mlp = linear(f"{name}.mlp.fc1", dim, hidden) | linear(f"{name}.mlp.fc2", hidden, dim)
    return norm(f"{name}.norm1", dim) | attention | norm(f"{name}.norm2", dim) | mlp


def patch_embed_macs(dim: int, patch: int, grid: int, multi_conv: bool) -> int:
    """Of a patch embedding with grid x grid patches of 12 or 16 pixels (any size for one convolution)."""
    if not multi_conv:
        return grid**2 * dim * 3 * patch**2
    stride = 3 if patch == 12 else 2
    last = grid**2 * dim * 9 * (dim // 2)
    middle_grid = grid if patch == 12 else grid * 2
    middle = middle_grid**2 * (dim // 2) * 9 * (dim // 4)
    first = (middle_grid * stride) ** 2 * (dim // 4) * 3 * 49
    return first + middle + last


def block_macs(n: int, c: int, hidden: int) -> int:
    """Of a transformer block on n tokens of width c."""
    return n * (4 * c * c + 2 * c * hidden) + 2 * n * n * c


def block_saved(n: int, c: int, hidden: int, heads: int) -> int:
    """Numbers that a transformer block keeps of n tokens for the gradient, at least.

    Both norms' outputs and normalised inputs (4 c), q, k and v (3 c), the attention's probabilities (heads x n) and
    output (c), the residual stream (2 c), and the hidden layer before and after its GELU.
    """
    return n * (10 * c + 2 * hidden + heads * n)


def input_alive(pixels: int) -> int:
    """Numbers of a picture as it comes in, in evaluation: seven times 3 x pixels x pixels, as measured."""
    return 7 * 3 * pixels**2


def block_alive(n: int, c: int, heads: int) -> int:
    """Numbers that a transformer block has at once on n tokens where nothing is kept, at the most: in its attention.

    The residual stream (c), q, k and v twice (6 c), and the scores three times (heads x n each).
    """
    return n * (7 * c + 3 * heads * n)


def stem_alive(dim: int, patch: int, size: int) -> int:
    """What the first two convolutions of a dagger variant read, as windows of a picture of size x size pixels."""
    middle = size // (patch if patch == 12 else 8)
    return (size // 4) ** 2 * 3 * 49 + middle**2 * 9 * (dim // 4)
