#!/usr/bin/env python3
"""Make golden.json, counts.json and performer.json, the reference numbers of CrossViT, with its official code.

    git clone https://github.com/IBM/CrossViT
    python tests/data/make_crossvit.py CrossViT

in the environment of make_references.py. The committed files were made with the official code's commit 3f7ab77. Nothing
is imported from this project. The official code takes timm's transformer block of 2021; today's, with the same layers
and names, stands in for it. Multiply-accumulates are half of what PyTorch's counter of the operators that ran says.
"""

from __future__ import annotations

import importlib
import json
import sys
import types
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from make_references import (
    FOLDER,
    allow_bare_torchvision,
    layout,
    moved_modules,
    short,
    soft_loss,
    softmax,
    stand_in,
    summary,
    tensor,
    u,
    weight,
)
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

warnings.filterwarnings("ignore")
KEPT = allow_bare_torchvision()

MODELS = {
    **{f"crossvit_{name}_224": f"crossvit_{name}_240" for name in ("tiny", "small", "base", "9", "15", "18")},
    **{f"crossvit_{name}_dagger_224": f"crossvit_{name}_dagger_240" for name in ("9", "15", "18")},
    **{f"crossvit_{name}_dagger_384": f"crossvit_{name}_dagger_408" for name in ("15", "18")},
}
"""Official names and timm's."""
BASE = {"img_size": [240, 224], "patch_size": [12, 16], "qkv_bias": True, "norm_layer": partial(nn.LayerNorm, eps=1e-6)}
SMALL = BASE | {"embed_dim": [192, 384], "depth": [[1, 4, 0]] * 3, "num_heads": [6, 6], "mlp_ratio": [4, 4, 1]}
EMBEDDED: dict[str, dict[str, Any]] = {
    "crossvit_9": {"embed_dim": [128, 256], "depth": [[1, 3, 0]] * 3, "num_heads": [4, 4]},
    "crossvit_15": {"embed_dim": [192, 384], "depth": [[1, 5, 0]] * 3, "num_heads": [6, 6]},
    "crossvit_18": {"embed_dim": [224, 448], "depth": [[1, 6, 0]] * 3, "num_heads": [7, 7]},
}
"""Models that are also made with token-to-token embeddings."""
ROWS: dict[str, dict[str, Any]] = {
    "A": {"patch_size": [8, 16], "img_size": [224, 224]},
    "B": {"embed_dim": [384, 384]},
    "C": {"depth": [[2, 4, 0]] * 3},
    "D": {"depth": [[1, 4, 2]] * 3},
    "E": {"depth": [[1, 2, 0]] * 6},
}
"""The paper's architecture table, changes of CrossViT-S."""


def official(folder: Path) -> Any:
    """Return the official module."""
    moved_modules()
    importlib.import_module("timm.layers").set_fused_attn(False)  # the counter does not see into the fused operator
    vit = importlib.import_module("timm.models.vision_transformer")

    def block(dim: int, num_heads: int, mlp_ratio: float, qkv_bias: bool, norm_layer: Any, drop_path: float, **_: Any):
        options = {"mlp_ratio": mlp_ratio, "qkv_bias": qkv_bias, "norm_layer": norm_layer, "drop_path": drop_path}
        return vit.Block(dim, num_heads, **options)

    mlp = importlib.import_module("timm.layers").Mlp
    stand_in("timm.models.vision_transformer", _cfg=lambda **_: {}, Mlp=mlp, Block=block)
    package = types.ModuleType("official")
    package.__path__ = [str(folder / "models")]
    sys.modules["official"] = package
    return importlib.import_module("official.crossvit")


def logits_row(model: nn.Module, name: str, overrides: dict[str, Any], side: int) -> dict[str, Any]:
    """Return five logits and two sums over all, rounded to what a difference of PyTorch's kernels leaves alone."""
    with torch.no_grad():
        for key, value in model.state_dict().items():
            value.copy_(tensor(weight(key, tuple(value.shape))))
        y = model.eval()(tensor(1.5 * u("input", (2, 3, side, side)))).double()
    first = [round(v, 5) for v in y[0, :4].tolist()]
    sums = {"sum": round(y.sum().item(), 4), "abs_sum": round(y.abs().sum().item(), 4)}
    about = {"model": name, "overrides": overrides, "input": [side, side]}
    return about | {"first": first, "second": round(y[1, 0].item(), 5)} | sums


def counted(model: nn.Module, side: int) -> dict[str, int]:
    """Return parameters, multiply-accumulates and tensors."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(torch.zeros(1, 3, side, side))
    size = sum(p.numel() for p in model.parameters())
    return {"parameters": size, "macs": counter.get_total_flops() // 2, "tensors": len(model.state_dict())}


class Times(nn.Module):
    """A dropout whose draws are known."""

    def __init__(self, mask: torch.Tensor):
        super().__init__()
        self.mask = mask

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the masked tensor."""
        return x * self.mask


def mask(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Return a dropout's factors by rule: a tenth is 0."""
    return tensor((u(name, shape) >= -0.8) / 0.9)


def performer(module: Any, in_dim: int = 12, tokens: int = 6, batch: int = 2) -> dict[str, Any]:
    """Return a performer layer's output in training, with known dropout, and its gradients."""
    layer = module.Token_performer(dim=in_dim, in_dim=64)
    with torch.no_grad():
        for name, value in layer.state_dict().items():
            # keys of the rule's length would all have features of 0
            share = 0.25 if name.startswith("kqv.") else 1
            value.copy_(tensor(share * weight(name, tuple(value.shape))))
    layer.train()
    layer.dp, layer.mlp[3] = (Times(mask(name, (batch, tokens, 64))) for name in ("mask.proj", "mask.mlp"))
    x = tensor(u("input", (batch, tokens, in_dim))).requires_grad_()
    y = layer(x)
    loss = soft_loss(y.reshape(-1, 64), tensor(softmax(2 * u("target", (batch * tokens, 64)))))
    loss.backward()
    gradients = {name: summary(name, p.grad) for name, p in layer.named_parameters() if p.requires_grad}
    sizes = {"in_dim": in_dim, "tokens": tokens, "batch": batch}
    return {**sizes, "output": summary("output", y), "loss": short(loss.detach()), "gradients": gradients}


def write(name: str, content: dict[str, Any]) -> None:
    """Write a JSON file."""
    note = {"note": "Numbers of the official code, commit 3f7ab77, PyTorch 2.13, float32: see make_crossvit.py."}
    (FOLDER / name).write_text(layout(json.loads(json.dumps(note | content))) + "\n", encoding="utf-8")


def main() -> None:
    """Write the three files."""
    torch.set_num_threads(1)
    module = official(Path(sys.argv[1]))
    rows, variants, ablations = [], [], []
    for name, timm in MODELS.items():
        side = 408 if name.endswith("384") else 240
        model = getattr(module, name)()
        variants.append({"official": name, "timm": timm, **counted(model, side)})
        rows.append(logits_row(model, name, {}, side))
    for row, changes in ROWS.items():
        model = module.VisionTransformer(**SMALL | changes)
        found = counted(model, (SMALL | changes)["img_size"][0])
        gmacs = round(found["macs"] / 1e9, 4)
        ablations.append({"row": row, "overrides": changes, "parameters": found["parameters"], "gmacs": gmacs})
        if row in ("D", "E"):
            rows.append(logits_row(model, "crossvit_small", changes, 240))
    embeddings = []
    for name, sizes in EMBEDDED.items():
        for kind in ("t2t", "performer"):
            model = module.VisionTransformer(**BASE, **sizes, mlp_ratio=[3, 3, 1], hybrid_backbone=kind)
            trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
            embeddings.append({"model": name, "kind": kind, "trained": trained, **counted(model, 240)})
            if name == "crossvit_18":
                rows.append(logits_row(model, name, {"hybrid_backbone": kind}, 240))
    write("golden.json", {"rows": rows})
    write("counts.json", {"variants": variants, "ablations": ablations, "embeddings": embeddings})
    write("performer.json", performer(importlib.import_module("official.t2t.t2t")))


if __name__ == "__main__":
    main()
