#!/usr/bin/env python3
"""Make cabvit.json and weights_cabvit.pth, the reference numbers of CabViT, with its official code.

    git clone https://github.com/hkzhang91/CabViT
    python tests/data/make_cabvit.py CabViT

in the environment of make_references.py. The committed files were made with the official code's commit cfed90d. Nothing
is imported from this project. The official code imports modules that timm 1.0.31 has moved, matplotlib, which it does
not use, and one function of einops; all are given stand-ins here.
"""

from __future__ import annotations

import importlib
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from make_references import (
    FOLDER,
    allow_bare_torchvision,
    decay_groups,
    layout,
    moved_modules,
    numbers,
    short,
    soft_loss,
    softmax,
    stand_in,
    summary,
    tensor,
    u,
)
from make_references import weight as weight_of_others
from torch import nn

warnings.filterwarnings("ignore")
KEPT = allow_bare_torchvision()

SMALL: dict[str, Any] = {
    "img_size": 96,
    "embed_dims": [8, 12, 16, 24],
    "depths": [1, 1, 3, 2],
    "num_heads": [0, 0, 2, 3],
}
TINY = SMALL | {"img_size": 32, "embed_dims": [4, 8, 8, 8], "depths": [1, 1, 2, 1], "num_heads": [0, 0, 2, 2]}
RUNNING = ("running_mean", "running_var")


def rearrange(x: torch.Tensor, pattern: str) -> torch.Tensor:
    """Return the one rearrangement that the official code asks einops for."""
    assert pattern == "b c h w -> b (h w) c"
    return x.flatten(2).transpose(1, 2)


def official(folder: Path) -> tuple[Any, Any]:
    """Return the modules of the hybrid and of the plain models."""
    moved_modules()
    stand_in("einops", rearrange=rearrange)
    stand_in("matplotlib")
    stand_in("matplotlib.pyplot")
    sys.path[:0] = [str(folder / "models" / kind) for kind in ("cabvit_h", "cabvit_p")]
    return importlib.import_module("cabvit"), importlib.import_module("cabvit_p")


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return the value that the rule gives to the tensor with this name."""
    values, last = u(name, shape), name.rpartition(".")[2]
    if last == "running_var":
        return 1 + 0.5 * values
    if last in ("gamma", "gamma_1", "gamma_2"):
        return 0.5 + 0.1 * values
    if last == "s_scale_factors":
        return 1 + 0.1 * values
    if last in ("attention_biases", "s_token_bias"):
        return 0.5 * values
    return weight_of_others(name, shape)


def by_rule(model: nn.Module) -> nn.Module:
    """Return the model in evaluation mode with the rule's weights and running statistics, its batches uncounted."""
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if not name.endswith("num_batches_tracked"):
                value.copy_(tensor(weight(name, tuple(value.shape))))
    return model.eval()


def pictures(name: str, rows: slice = slice(None)) -> torch.Tensor:
    """Return some of four pictures of the small model by rule."""
    return tensor(1.5 * u(name, (4, 3, SMALL["img_size"], SMALL["img_size"])))[rows]


def targets(rows: slice = slice(None)) -> torch.Tensor:
    """Return their soft targets."""
    return tensor(softmax(2 * u("target", (4, 10))))[rows]


def running(model: nn.Module) -> dict[str, Any]:
    """Return a summary of the running statistics of every batch norm."""
    return {name: summary(name, value) for name, value in model.state_dict().items() if name.endswith(RUNNING)}


def logits_of(model: nn.Module) -> list[list[float]]:
    """Return the small model's logits in evaluation mode."""
    with torch.no_grad():
        return [numbers(row) for row in model.eval()(pictures("input"))]


def row(make: Any) -> dict[str, Any]:
    """Return five logits of a released model and two sums over all, and its number of parameters."""
    model = by_rule(make())
    with torch.no_grad():
        logits = model(tensor(1.5 * u("input", (2, 3, 224, 224))))
    sums = {"sum": short(logits.double().sum()), "abs_sum": short(logits.double().abs().sum())}
    first = {"model": make.__name__, "first": numbers(logits[0, :4]), "second": short(logits[1, 0])}
    return first | sums | {"parameters": sum(p.numel() for p in model.parameters())}


def one_pass(make: Any) -> dict[str, Any]:
    """Return logits, and of one pass in training mode loss, gradients and running statistics."""
    model = by_rule(make(**SMALL, num_classes=10, drop_path_rate=0))
    found = {"config": SMALL, "logits": logits_of(model)}
    loss = soft_loss(model.train()(pictures("input")), targets())
    loss.backward()
    gradients = {name: summary(name, parameter.grad) for name, parameter in model.named_parameters()}
    return found | {"loss": short(loss.detach()), "gradients": gradients, "running": running(model)}


def trained(make: Any, updates: int, micro: int) -> tuple[list[float], nn.Module]:
    """Return the losses of AdamW updates of `micro` equal parts of four pictures, and the trained model."""
    model = by_rule(make(**SMALL, num_classes=10, drop_path_rate=0)).train()
    optimizer = torch.optim.AdamW(decay_groups(model, 0.05), lr=1e-3, eps=1e-3)
    losses = []
    for k in range(updates):
        optimizer.zero_grad()
        for part in range(micro):
            rows = slice(part * 4 // micro, (part + 1) * 4 // micro)
            loss = soft_loss(model(pictures(f"input{k}", rows)), targets(rows))
            (loss / micro).backward()
            losses.append(short(loss.detach()))
        optimizer.step()
    return losses, model


def checkpoint(make: Any, classes: int = 5) -> dict[str, Any]:
    """Write a bare state dict, as no weights were released: it has PyTorch's counters of batches; return its logits."""
    model = by_rule(make(**TINY, num_classes=classes))
    with torch.no_grad():
        logits = model(tensor(1.5 * u("input", (2, 3, TINY["img_size"], TINY["img_size"]))))
    torch.save(model.state_dict(), FOLDER / "weights_cabvit.pth")
    return {"config": TINY, "logits": [numbers(row) for row in logits]}


def main() -> None:
    """Write cabvit.json and weights_cabvit.pth."""
    torch.set_num_threads(1)
    hybrid, plain = official(Path(sys.argv[1]))
    losses, model = trained(hybrid.CaBViT_H, 6, 1)
    after = {"losses": losses, "trained_running": running(model), "trained_logits": logits_of(model)}
    losses, model = trained(hybrid.CaBViT_H, 3, 2)
    content = {
        "note": "Numbers of the official code, commit cfed90d, PyTorch 2.13, float32: see make_cabvit.py. logits: in"
        " evaluation mode. loss, gradients, running: one pass in training mode. losses, trained_*: six AdamW updates"
        " of batch 4 (lr 1e-3, eps 1e-3, decay 0.05 on tensors of more than one dimension, input k is u('inputk'))."
        " accumulated: three updates of two micro-batches of 2.",
        "rows": [row(make) for make in (hybrid.cabvit_h_l1, hybrid.cabvit_h_l2, hybrid.cabvit_h_l3, plain.cabvit_p_l0)],
        **one_pass(hybrid.CaBViT_H),
        **after,
        "accumulated": {"losses": losses, "running": running(model)},
        "checkpoint": checkpoint(hybrid.CaBViT_H),
    }
    (FOLDER / "cabvit.json").write_text(layout(json.loads(json.dumps(content))) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
