#!/usr/bin/env python3
"""Make crossformer.json and weights_crossformer.pth, the reference numbers of CrossFormer, with its official code.

    git clone https://github.com/cheerss/CrossFormer
    python tests/data/make_crossformer.py CrossFormer

in the environment of make_references.py. The committed file was made with the official code's commit 7952010. Nothing
is imported from this project. The official code imports modules that timm 1.0.31 has moved, and its dense backbone
imports mmdetection for logging and loading only; both are given stand-ins here.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import torch
from make_references import (
    FOLDER,
    allow_bare_torchvision,
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
    weight,
)
from torch import nn

warnings.filterwarnings("ignore")
KEPT = allow_bare_torchvision()

FIRST = {"patch_size": [4, 8, 16, 32], "merge_size": [[2, 4]] * 3, "mlp_ratio": [4] * 4}
SECOND = FIRST | {"group_size": [4, 4, 14, 7], "crs_interval": [4, 2, 1, 1], "use_acl": True}
MODELS = {
    "crossformer_t": FIRST | {"embed_dim": 64, "depths": [1, 1, 8, 6], "num_heads": [2, 4, 8, 16]},
    "crossformer_s": FIRST | {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24]},
    "crossformer_b": FIRST | {"embed_dim": 96, "depths": [2, 2, 18, 2], "num_heads": [3, 6, 12, 24]},
    "crossformer_l": FIRST | {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32]},
    "crossformerpp_s": SECOND | {"embed_dim": 64, "depths": [2, 2, 18, 2], "num_heads": [2, 4, 8, 16]},
    "crossformerpp_b": SECOND | {"embed_dim": 96, "depths": [2, 2, 18, 2], "num_heads": [3, 6, 12, 24]},
    "crossformerpp_l": SECOND | {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32]},
    "crossformerpp_h": SECOND | {"embed_dim": 128, "depths": [6, 6, 18, 2], "num_heads": [4, 8, 16, 32]},
}
"""The numbers of the official configs/*.yaml, over the defaults of its config.py."""
SMALL: dict[str, Any] = {
    "img_size": 48,
    "patch_size": [4, 8, 16],
    "embed_dim": 64,
    "depths": [1, 4],
    "num_heads": [2, 4],
    "group_size": [4, 2],
    "crs_interval": [2, 2],
    "mlp_ratio": [1, 2],
    "merge_size": [[2, 4]],
    "use_acl": True,
}
CASES = {
    "no padding": SMALL | {"group_size": [3, 6], "use_acl": False, "patch_size": [4], "merge_size": [[2]]},
    "padding": SMALL,
    "both sides": SMALL | {"img_size": 40, "pad_type": 1, "qkv_bias": False},
    "no mask": SMALL | {"img_size": 40, "no_mask": True, "pad_type": 1},
}
TINY = SMALL | {"img_size": 32, "patch_size": [4, 8], "embed_dim": 16, "depths": [1, 2], "num_heads": [2, 2]}
WITH_GRADIENTS = ("padding", "no mask")
DENSE = ("crossformer_s", "crossformerpp_s")
DEPTHS = ([1, 1, 8, 6], [2, 2, 6, 2], [2, 2, 18, 2], [6, 6, 18, 2], [1, 2, 3, 4], [3, 3, 27, 3])
GROUP_TYPES = ("constant", "linear", "linear_div", "alter", "7_14")
BACKBONES: dict[str, tuple[dict[str, Any], tuple[list[int], ...]]] = {
    "two stages": (SMALL | {"group_size": [4, 3], "depths": [2, 2]}, ([16, 16], [24, 72])),
    "four stages": (
        FIRST
        | {"embed_dim": 16, "depths": [1, 2, 4, 1], "num_heads": [1, 2, 2, 4], "use_acl": True, "patch_size": [4, 8]}
        | {"group_size": [3, 3, 3, 2], "crs_interval": [2, 2, 2, 1]},
        ([64, 64], [32, 32], [96, 32], [32, 224], [160, 192], [32, 64]),
    ),
}
"""Narrow dense backbones, and sizes of pictures."""


def official(folder: Path) -> tuple[Any, Any]:
    """Return the classifier's and the detection backbone's modules."""

    def nothing(*_: object, **__: object) -> Any:
        return types.SimpleNamespace(info=print)

    moved_modules()
    stand_in("mmdet")
    stand_in("mmdet.utils", get_root_logger=nothing)
    for name in ("mmcv", "mmcv.cnn.bricks", "mmcv.cnn.utils"):
        stand_in(name)
    stand_in(
        "mmcv.runner", load_checkpoint=nothing, _load_checkpoint=nothing, BaseModule=nn.Module, ModuleList=nn.ModuleList
    )
    stand_in("mmcv.cnn", build_norm_layer=nothing, constant_init=nothing, trunc_normal_init=nothing)
    stand_in("mmcv.cnn.bricks.transformer", FFN=nn.Module, build_dropout=nothing)
    stand_in("mmcv.cnn.utils.weight_init", trunc_normal_=nothing)
    sys.path.insert(0, str(folder / "models"))
    return importlib.import_module("crossformer"), importlib.import_module("crossformer_backbone_det")


def build(kind: Any, config: dict[str, Any], **more: Any) -> nn.Module:
    """Return a model in evaluation mode with the rule's weights."""
    with contextlib.redirect_stdout(io.StringIO()):
        model = kind(**config, **more)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensor(weight(name, parameter.shape)))
    return model.eval()


def picture(batch: int, height: int, width: int) -> torch.Tensor:
    """Return the input by rule."""
    return tensor(1.5 * u("input", (batch, 3, height, width)))


def case(kind: Any, config: dict[str, Any], gradients: bool, batch: int = 3, classes: int = 10) -> dict[str, Any]:
    """Return logits, loss and, if asked for, a summary of every gradient of one model."""
    model = build(kind, config, num_classes=classes)
    logits = model(picture(batch, config["img_size"], config["img_size"]))
    loss = soft_loss(logits, tensor(softmax(2 * u("target", (batch, classes)))))
    found = {"config": config, "logits": [numbers(row) for row in logits], "loss": short(loss.detach())}
    if gradients:
        loss.backward()
        found["gradients"] = {name: summary(name, parameter.grad) for name, parameter in model.named_parameters()}
    return found


def row(kind: Any, name: str) -> dict[str, Any]:
    """Return five logits of a released model and two sums over all, and its number of parameters."""
    model = build(kind, MODELS[name])
    with torch.no_grad():
        logits = model(picture(2, 224, 224))
    sums = {"sum": short(logits.double().sum()), "abs_sum": short(logits.double().abs().sum())}
    count = sum(p.numel() for p in model.parameters())
    return (
        {"model": name, "first": numbers(logits[0, :4]), "second": short(logits[1, 0])} | sums | {"parameters": count}
    )


def features(kind: Any, config: dict[str, Any], ratio: int, height: int, width: int) -> dict[str, Any]:
    """Return the maps of a new dense backbone (the official one remembers small pictures)."""
    model = build(kind, config | {"mlp_ratio": ratio, "img_size": 224})
    with torch.no_grad():
        maps = model(picture(2, height, width))
    return {"size": [height, width], "maps": [summary(f"map.{i}", m) for i, m in enumerate(maps)]}


def map_rows(kind: Any, name: str, height: int = 160, width: int = 224) -> list[dict[str, Any]]:
    """Return five values and two sums of each map, rounded to what a difference of PyTorch's kernels leaves alone."""
    model = build(kind, MODELS[name] | {"mlp_ratio": 4, "img_size": 224})
    with torch.no_grad():
        maps = [m.double() for m in model(picture(2, height, width))]
    rows = []
    for i, x in enumerate(maps):
        about = {"model": name, "map": i, "shape": list(x.shape), "input": [height, width]}
        first = {"first": [round(v, 5) for v in x[0, :4, 0, 0].tolist()], "second": round(x[1, 0, 0, 0].item(), 5)}
        rows.append(about | first | {"sum": round(x.sum().item(), 4), "abs_sum": round(x.abs().sum().item(), 4)})
    return rows


def group_sides(kind: Any) -> list[dict[str, Any]]:
    """Return the group size of every block for every policy."""
    rows = []
    for depths in DEPTHS:
        for group_type in GROUP_TYPES:
            with contextlib.redirect_stdout(io.StringIO()):
                sides = kind.compute_group_size(None, [4, 4, 14, 7], depths, [56, 56], group_type)
            rows.append({"depths": depths, "group_type": group_type, "sides": sides})
    return rows


def schedule() -> dict[str, Any]:
    """Return the official learning rate of some updates of 300 epochs of 10, at 1024 pictures an update."""
    cosine = importlib.import_module("timm.scheduler.cosine_lr").CosineLRScheduler
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=1e-3)
    ends = {"lr_min": 1e-5, "warmup_lr_init": 1e-6}
    rates = cosine(optimizer, t_initial=3000, warmup_t=200, cycle_limit=1, t_in_epochs=False, **ends)
    updates = [0, 1, 100, 199, 200, 201, 1500, 2999]
    return {"updates": updates, "rates": [short(rates._get_lr(k)[0]) for k in updates]}


class CfgNode(dict):
    """Stands for yacs's, which the official checkpoints hold beside the weights."""


CfgNode.__module__ = "yacs.config"


def checkpoint(kind: Any, classes: int = 5) -> dict[str, Any]:
    """Write a checkpoint as the official training script did when its tables were still saved; return its logits."""
    stand_in("yacs")
    stand_in("yacs.config", CfgNode=CfgNode)
    model = build(kind, TINY, num_classes=classes)
    with torch.no_grad():
        logits = model(picture(2, TINY["img_size"], TINY["img_size"]))
    tables = {name: value for name, value in model.named_buffers() if value is not None}
    config = CfgNode(MODEL=CfgNode(NAME="tiny", DEPTHS=TINY["depths"]))
    config.__dict__["__immutable__"] = True
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3).state_dict()
    content = {"model": model.state_dict() | tables, "optimizer": optimizer, "max_accuracy": 1.0, "epoch": 3}
    torch.save(content | {"config": config}, FOLDER / "weights_crossformer.pth")
    return {"config": TINY, "logits": [numbers(row) for row in logits]}


def main() -> None:
    """Write crossformer.json and weights_crossformer.pth."""
    torch.set_num_threads(1)
    classifier, backbone = official(Path(sys.argv[1]))
    content = {
        "note": "Numbers of the official code, commit 7952010, PyTorch 2.13, float32: see make_crossformer.py.",
        "rows": [row(classifier.CrossFormer, name) for name in MODELS],
        "features": {n: features(backbone.CrossFormer, MODELS[n], 4, 160, 224) for n in DENSE},
        "maps": [row for name in DENSE for row in map_rows(backbone.CrossFormer, name)],
        "cases": {name: case(classifier.CrossFormer, config, name in WITH_GRADIENTS) for name, config in CASES.items()},
        "backbones": {
            name: {
                "config": config | {"mlp_ratio": [2] * len(config["depths"]), "img_size": 224},
                "sizes": [features(backbone.CrossFormer, config, 2, *size) for size in sizes],
            }
            for name, (config, sizes) in BACKBONES.items()
        },
        "schedule": schedule(),
        "checkpoint": checkpoint(classifier.CrossFormer),
        "groups": group_sides(classifier.CrossFormer),
    }
    (FOLDER / "crossformer.json").write_text(layout(json.loads(json.dumps(content))) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
