"""Fast compositions of MindSpore's CPU operators, with gradients of their own where the built-in ones are slow.

What is large is not only slow to compute: a graph's kernels run as soon as their inputs are there, and what they make
lives until its last use. So a gradient is written to need few tensors of the forward pass, and work for it that needs
nothing else than these waits for the gradient (`ops.depend`).
"""

from .. import Ops
from ..standard import ClassAttention  # between half-precision products only
from .attention import Attention, NormClassAttention
from .biased_attention import BiasedAttention
from .conv import Conv2d, ToMap, ToTokens
from .depthwise import Depthwise
from .group_attention import GroupAttention
from .linear import LayerNorm, Linear, NormLinear, ScalePictures
from .mlp import Gelu, NormMlp
from .norm import BatchNorm

COMPOSED = Ops(
    "composed",
    Linear,
    NormLinear,
    NormMlp,
    Gelu,
    LayerNorm,
    Attention,
    ClassAttention,
    NormClassAttention,
    BiasedAttention,
    GroupAttention,
    ScalePictures,
    Conv2d,
    Depthwise,
    BatchNorm,
    ToTokens,
    ToMap,
)
