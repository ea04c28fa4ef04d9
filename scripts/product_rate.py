"""How fast this machine multiplies matrices: what no model that consists of products can go below.

python scripts/product_rate.py
"""

import sys
import time
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np

from mindcv_crossvit import runtime
from mindcv_crossvit.models.catalog import VARIANTS
from mindcv_crossvit.models.crossvit_config import CrossViTConfig

Product = tuple[int, int, int]
"""Rows, inner width and columns of x [M, K] by weight [N, K]."""


TOGETHER = 5
"""Products between two looks at the clock: they are queued, and only the last result is fetched."""


def rate(products: Iterable[Product], repeats: int = 10) -> float:
    """Multiply-accumulates a second of these products in turn, each at its fastest, by MindSpore's MatMul."""
    from mindspore import Tensor, ops

    runtime.start("auto")
    multiply, rng, seconds, work = ops.MatMul(transpose_b=True), np.random.default_rng(0), 0.0, 0
    for m, k, n in products:
        x, weight = (Tensor(rng.standard_normal(shape, np.float32)) for shape in ((m, k), (n, k)))
        times = []
        for _ in range(repeats):
            began = time.perf_counter()
            for _ in range(TOGETHER - 1):
                multiply(x, weight)
            multiply(x, weight).asnumpy()
            times.append((time.perf_counter() - began) / TOGETHER)
        seconds, work = seconds + min(times), work + m * k * n
    return work / seconds


def products(config: CrossViTConfig, batch: int) -> list[Product]:
    """The large products of a model's blocks, one of each kind and branch as often as it occurs."""
    found: list[Product] = []
    for triple in config.depth:
        for i in range(2):
            rows, c, hidden = batch * config.tokens[i], config.embed_dim[i], config.hidden_dim[i]
            found += [(rows, c, 3 * c), (rows, c, c), (rows, c, hidden), (rows, hidden, c)] * triple[i]
    return found


if __name__ == "__main__":
    print(f"2048 x 2048 x 2048: {2 * rate([(2048, 2048, 2048)]) / 1e9:.0f} GFLOP/s")
    for name in ("crossvit_9", "crossvit_15", "crossvit_18"):
        config = VARIANTS[name]
        assert isinstance(config, CrossViTConfig)
        print(f"the products of {name}, 8 pictures: {2 * rate(products(config, 8)) / 1e9:.0f} GFLOP/s")
