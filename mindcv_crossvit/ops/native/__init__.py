"""This suite's own C++ kernels for the CPU, float32 only; what they do not cover is the composed operators'.

They are compiled when they are first used (some seconds) and kept, see build.py. The same values as `composed` to
float32 rounding, in about the memory PyTorch needs.
"""

from dataclasses import replace

from ..composed import COMPOSED
from .cells import Attention, Conv2d, Linear, NormLinear, ScalePictures, norm_mlp

NATIVE = replace(
    COMPOSED,
    name="native",
    linear=Linear,
    norm_linear=NormLinear,
    norm_mlp=norm_mlp,
    attention=Attention,
    scale_pictures=ScalePictures,
    conv2d=Conv2d,
)
