"""A DeiT as an ONNX graph, from its numbers and tensors alone, without MindSpore.

B batch, N = 1 + P tokens, C width. Written by hand, see crossvit_onnx.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..models.deit_config import DeiTConfig
from .layers import Layers

INPUT, OUTPUT = "images", "logits"
_EPS = 1e-6


def onnx_model(config: DeiTConfig, tensors: Mapping[str, np.ndarray], batch: int) -> Any:
    """The onnx.ModelProto from `images` [batch, 3, S, S] to `logits` [batch, classes].

    tensors: float32, by official name.
    """
    layers, dim, tokens = Layers(tensors, batch), config.embed_dim, config.tokens
    x = layers.patches("patch_embed.proj", INPUT, config.patch_size, config.multi_conv)
    x = layers.token_and_patches("cls_token", "pos_embed", x, dim, tokens - 1)
    for b in range(config.depth):
        x = layers.block(f"blocks.{b}", x, tokens, dim, config.num_heads, _EPS)
    x = layers.graph.reshape(layers.norm("norm", layers.graph.cut(x, 0, 1), _EPS), batch, dim)
    layers.linear("head", x, into=OUTPUT)
    shapes = {INPUT: (batch, 3, config.img_size, config.img_size)}, {OUTPUT: (batch, len(tensors["head.bias"]))}
    return layers.graph.model("deit", *shapes)
