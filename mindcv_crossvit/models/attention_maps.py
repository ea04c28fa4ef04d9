"""What attends to what in a CrossViT: the attention weights behind a prediction, read in a pass of their own.

B batch, i branch, N = 1 + P tokens, T = B*N, H heads, D = C/H head width, C width. Position 0 is a class token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from mindspore import Tensor, nn

from .blocks import first_token
from .crossvit import CrossViT
from .fusion import join


@dataclass(frozen=True)
class AttentionMaps:
    """Attention weights of a batch, float32, every row a distribution; two entries each, the small branch first.

    logits: [B, classes] of the same pass.
    blocks: per branch, the self-attention [B, H, N, N] of its blocks, first to last over all encoders.
    cross: how the class token of each branch reads the other branch in the last encoder: [B, H, N of the other]. Its
        position 0 is the class token itself, projected. Of stacked cross-attention blocks it is the first: the later
        ones see one key only.
    """

    logits: np.ndarray
    blocks: tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]
    cross: tuple[np.ndarray, np.ndarray]


class AttentionReader:
    """Reads the attention of a model: reader(images) -> AttentionMaps.

    The model's own layers give queries and keys, in one graph, compiled once per shape of the images; the softmax is
    taken here. Training and prediction know nothing of it.
    Raises ValueError for a model that is not of this suite.
    """

    def __init__(self, model: nn.Cell):
        if not isinstance(model, CrossViT):
            raise ValueError(f"attention is read from the CrossViT models of this suite, not {type(model).__name__}")
        if not model.config.reads_across:
            raise ValueError("attention is read where class tokens attend to the other branch: fusion cross_attention")
        self.model = model
        self.walk = _Walk(model)

    def __call__(self, images: np.ndarray) -> AttentionMaps:
        """images: [B, 3, S, S] as the model takes them. The model's train or evaluation mode is left as it was."""
        was_training = self.model.training
        if was_training:  # a change of mode compiles again, even to the same one
            self.model.set_train(False)
        logits, qkv0, qkv1, cross = self.walk(Tensor(np.asarray(images, np.float32)))
        if was_training:
            self.model.set_train(True)
        heads, tokens = self.model.config.num_heads, self.model.config.tokens
        first, second = (
            tuple(_self_attention(qkv.asnumpy(), tokens[i], heads[i]) for qkv in of_branch)
            for i, of_branch in enumerate((qkv0, qkv1))
        )
        read0, read1 = (
            _class_attention(q.asnumpy(), k.asnumpy(), tokens[1 - i], heads[1 - i]) for i, (q, k) in enumerate(cross)
        )
        return AttentionMaps(logits.asnumpy(), (first, second), (read0, read1))


def rollout(blocks: Sequence[np.ndarray]) -> np.ndarray:
    """How much of each token reaches each token through several blocks: [B, H, N, N] each -> [B, N, N].

    Abnar & Zuidema, "Quantifying Attention Flow in Transformers" (arXiv 2005.00928): the product of (A + I) / 2, A
    the mean over heads. Row 0 is what the class token is made of. For a branch of a CrossViT it follows the branch's
    own blocks and leaves out what the class token reads in the other branch between them.
    """
    if not blocks:
        raise ValueError("rollout needs the attention of one block at least")
    identity = np.eye(blocks[0].shape[-1], dtype=np.float32)
    flow = identity
    for attention in blocks:
        flow = (attention.mean(1) + identity) / 2 @ flow
    return flow


def patch_grid(weights: np.ndarray) -> np.ndarray:
    """Weights over the tokens of a branch [..., 1 + P] -> its square grid of patches [..., side, side], as they are."""
    side = math.isqrt(weights.shape[-1] - 1)
    return weights[..., 1:].reshape(*weights.shape[:-1], side, side)


class _Walk(nn.Cell):
    """(logits, qkv of each block of branch 0, of branch 1, ((q, k), (q, k)) of the last cross-attentions)."""

    def __init__(self, model: CrossViT):
        super().__init__(auto_prefix=False)  # the model's parameters keep their names
        self.model = model

    def construct(self, x_b3ss):
        model = self.model
        x0_tc, x1_tc = model.embed(x_b3ss)
        qkv0, qkv1, cross = (), (), ()
        for encoder in model.blocks:
            x0_tc, new0 = self._blocks(encoder.blocks[0], x0_tc)
            x1_tc, new1 = self._blocks(encoder.blocks[1], x1_tc)
            qkv0, qkv1 = qkv0 + new0, qkv1 + new1
            cross = (self._cross(encoder, 0, x0_tc, x1_tc), self._cross(encoder, 1, x1_tc, x0_tc))
            x0_tc, x1_tc = encoder.fuse(x0_tc, x1_tc)
        return model.classify(x0_tc, x1_tc), qkv0, qkv1, cross

    def _blocks(self, blocks, x_tc):
        found = ()
        for block in blocks:
            found = found + (block.attn.qkv(block.norm1(x_tc)),)  # noqa: RUF005 (the graph parser)
            x_tc = block(x_tc)
        return x_tc, found

    def _cross(self, encoder, i, own_tc, other_tc):
        cls_bc = encoder.projs[i](encoder.split(own_tc, i)[0])
        tokens_tc = join(cls_bc, encoder.split(other_tc, 1 - i)[1])
        block = encoder.fusion[i][0] if encoder.stacked else encoder.fusion[i]
        normed_tc = block.norm1(tokens_tc)
        return block.attn.wq(first_token(normed_tc, block.tokens)), block.attn.wk(normed_tc)


def _self_attention(qkv_t3c: np.ndarray, tokens: int, heads: int) -> np.ndarray:
    qkv = qkv_t3c.astype(np.float32).reshape(-1, tokens, 3, heads, qkv_t3c.shape[1] // (3 * heads))
    q_bhnd, k_bhnd = qkv[:, :, 0].transpose(0, 2, 1, 3), qkv[:, :, 1].transpose(0, 2, 1, 3)
    return _weights(q_bhnd, k_bhnd)


def _class_attention(q_bc: np.ndarray, k_tc: np.ndarray, tokens: int, heads: int) -> np.ndarray:
    head_dim = q_bc.shape[1] // heads
    q_bh1d = q_bc.astype(np.float32).reshape(-1, heads, 1, head_dim)
    k_bhnd = k_tc.astype(np.float32).reshape(-1, tokens, heads, head_dim).transpose(0, 2, 1, 3)
    return _weights(q_bh1d, k_bhnd)[:, :, 0]


def _weights(q_bhmd: np.ndarray, k_bhnd: np.ndarray) -> np.ndarray:
    """softmax(q k^T / sqrt(D)), [B, H, M, N]."""
    scores = q_bhmd @ k_bhnd.swapaxes(2, 3) * np.float32(q_bhmd.shape[3] ** -0.5)
    exponentials = np.exp(scores - scores.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)
