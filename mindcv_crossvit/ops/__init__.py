"""The few primitives every model is written in, in named implementations, chosen once.

    standard   MindSpore's own operators, on any device: the reference
    fused      the same with single operators of Ascend cards where there are some; not run on Ascend
    composed   compositions of fast MindSpore CPU operators with gradients of their own
    native     C++ kernels for the CPU, compiled on first use where there is a compiler; float32 only

The built-in CPU kernels behind `standard` are correct where it uses them and slow; `composed` gives the same values to
float32 rounding. Tokens stay two-dimensional, [B*N, C], through a whole block: both backends multiply those fastest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cache, partial
from typing import Any

NAMES = ("standard", "fused", "composed", "native")
PRECISIONS = ("O0", "O1", "O2", "O3")


@dataclass(frozen=True)
class Ops:
    """One implementation of the primitives. Every entry builds a Cell without parameters.

    linear()                      (x [T, I], weight [O, I], bias [O] or None) -> [T, O]
    norm_linear(eps)              (x [T, C], norm's weight and bias [C], weight [O, C], bias [O] or None) -> [T, O]
    norm_mlp(eps, approximate)    (x [T, C], norm's weight and bias [C], weight [O, C], bias [O], weight [C, O],
                                  bias [C]) -> linear(gelu(linear(layer_norm(x)))) [T, C]
    gelu(approximate)             GELU of any shape: "none" (default) is the exact (erf) one, "tanh" the tanh form
    layer_norm(eps, many)         (x [T, C], weight [C], bias [C]) -> [T, C]; many: of whole pictures' tokens, not of a
                                  token a picture (default)
    attention(tokens, heads)      (qkv [B*N, 3C], C ordered q, k, v, head-major) -> [B*N, C]
    class_attention(tokens, heads)(q [B, C], k [B*N, C], v [B*N, C]) -> [B, C]
    norm_class_attention(tokens, heads, eps)
                                  (class tokens [B, C], x [B*N, C], norm's weight and bias [C], weight [C, C] and
                                  bias [C] or None of q, k and v) -> attention of layer_norm(class token) to
                                  layer_norm(x) [B, C]
    biased_attention(heads)       (q [B, N, C], k [B, M, C], v [B, M, C], bias [H, N, M], mask [W, 1 or N, M] or None)
                                  -> softmax(q k^T / sqrt(C/H) + bias + mask) v [B, N, C], all float32; with a mask
                                  B = pictures * W, the windows of a picture one after the other
    group_attention(heads)        (qkv [B*H*W, 3C], bias [heads, N, N], groups as in models.crossformer_groups)
                                  -> attention in every group of a grid of tokens [B*H*W, C]; padding is not attended
    scale_pictures()              (x [B*N, C], factors [B]) -> [B*N, C]; no gradient of the factors
    conv2d(kernel, stride, pad, from_image)
                                  (map, weight [O, I, k, k], bias [O] or None) -> map, in the implementation's own
                                  layout; from_image marks the convolution whose input is an image [B, 3, H, W]
    depthwise(kernel, stride, pad)(map, weight [C, 1, k, k], bias [C] or None) -> map
    batch_norm(eps, ranks)        (map, weight [C], bias [C]) -> (map, mean [C], biased variance [C] of the batch), over
                                  the batches of `ranks` ranks (1, or all of them)
    to_tokens()                   map -> [B*N, C], row-major
    to_map()                      (tokens [B*H*W, C], H, W) -> map
    """

    name: str
    linear: Callable[[], Any]
    norm_linear: Callable[[float], Any]
    norm_mlp: Callable[..., Any]
    gelu: Callable[..., Any]
    layer_norm: Callable[..., Any]
    attention: Callable[[int, int], Any]
    class_attention: Callable[[int, int], Any]
    norm_class_attention: Callable[[int, int, float], Any]
    biased_attention: Callable[[int], Any]
    group_attention: Callable[[int], Any]
    scale_pictures: Callable[[], Any]
    conv2d: Callable[[int, int, int, bool], Any]
    depthwise: Callable[[int, int, int], Any]
    batch_norm: Callable[[float, int], Any]
    to_tokens: Callable[[], Any]
    to_map: Callable[[], Any]
    precision: str = "O0"
    """What is float16: O0 nothing; O1 the inputs of matrix products and convolutions; O2 their outputs, too, and what
    lies between them in a branch; O3 the residual stream, too. Norms, softmax and loss are float32 always."""
    ranks: int = 1
    """Over how many ranks a model's batch norms take their statistics while training: 1, or all of them."""

    def with_gelu(self, approximate: str) -> Ops:
        """The same primitives with this form of GELU throughout."""
        norm_mlp = partial(self.norm_mlp, approximate=approximate)
        return replace(self, norm_mlp=norm_mlp, gelu=partial(self.gelu, approximate))

    def shared(self) -> Ops:
        """The same primitives, each made once for the same arguments: all layers of a model may use one Cell.

        It has no parameters, and is then parsed and differentiated once: compiling is faster.
        """
        makers = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: cache(make) for name, make in makers.items() if callable(make)})

    def exact(self) -> Ops:
        """The same primitives in float32 throughout."""
        return replace(self, precision="O0")

    @property
    def half(self) -> bool:
        """Whether products are taken in float16."""
        return self.precision != "O0"

    @property
    def half_branch(self) -> bool:
        """Whether a branch keeps float16 between its products."""
        return self.precision in ("O2", "O3")

    @property
    def half_stream(self) -> bool:
        """Whether the residual stream is float16."""
        return self.precision == "O3"


def choose(name: str = "auto", device: str | None = None, precision: str = "O0", ranks: int = 1) -> Ops:
    """The implementation for a device ("CPU", "Ascend"); "auto" takes composed on a CPU and fused elsewhere.

    Raises ValueError for an unknown name or precision, and for native operators in half precision; UserError where
    these cannot be compiled.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"unknown precision {precision!r}; known are {', '.join(PRECISIONS)}")
    if device is None:
        from ..runtime import device_target

        device = device_target()
    if name == "auto":
        name = "composed" if device == "CPU" else "fused"
    if name not in NAMES:
        raise ValueError(f"unknown ops {name!r}; known are auto, {', '.join(NAMES)}")
    if name == "composed":
        from .composed import COMPOSED

        return replace(COMPOSED, precision=precision, ranks=ranks)
    if name == "native":
        if precision != "O0":
            raise ValueError(f"native operators are float32 only: precision O0, not {precision}; or use composed")
        from .native import NATIVE

        return replace(NATIVE, ranks=ranks)
    if name == "fused":
        from .fused import FUSED

        return replace(FUSED, precision=precision, ranks=ranks)
    from .standard import STANDARD

    return replace(STANDARD, precision=precision, ranks=ranks)
