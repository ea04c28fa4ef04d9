#!/usr/bin/env python3
"""Make the reference numbers that the tests compare this project with.

Everything here comes from PyTorch, timm, torchvision and Pillow; nothing is imported from this project, so the
files are an independent yardstick.  Run it in an environment of its own::

    pip install torch==2.13.0 timm==1.0.31 scikit-learn 'pillow<13'
    python tests/data/make_references.py             # every file
    python tests/data/make_references.py adamw sgd   # only these

The committed files were made with Python 3.11, torch 2.13.0, torchvision 0.28.0, timm 1.0.31, Pillow 12.3.0,
scikit-learn 1.9.1 and NumPy 2.4.6, on a CPU with one thread.  Each JSON file repeats the versions that made it.

Values that need no file of their own follow one rule, `u(name, shape)`, so that a test can rebuild them:
with i = 1, 2, ... in row-major order, float64, and ph = (sum of the bytes of name) mod 97,

    u_i = 2 * frac(sin(12.9898 * i + ph) * 43758.5453) - 1,    frac(t) = t - floor(t).

README.md beside this file says what each file holds.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.resources
import io
import json
import math
import os
import platform
import random
import sys
import types
import zlib
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch import nn

FOLDER = Path(__file__).resolve().parent
PACKAGES = ("torch", "torchvision", "timm", "pillow", "scikit-learn", "numpy")
SEED = 20210327
DRAWS = 30_000
PROBABILITIES = np.linspace(0.0, 1.0, 101)

FILL = (124, 116, 104)
CROP_BOX = (272, 165, 368, 261)
MAGNITUDES = (0, 3.7, 9, 10)
KEPT_MAGNITUDE = 9
DULL_DIVISORS = (2, 3, 4)
DULL_OFFSET = 40
POLICY = "rand-m9-mstd0.5-inc1"
POLICY_PARAMS = {"translate_const": int(240 * 0.45), "img_mean": FILL}
GEOMETRIC = ("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel")
ENHANCING = ("ColorIncreasing", "ContrastIncreasing", "BrightnessIncreasing", "SharpnessIncreasing")
SIGNED = GEOMETRIC + ENHANCING

LINEAR = {
    "img_size": 36,
    "img_scale": (1.0, 32 / 36 + 1e-9),
    "patch_size": (4, 8),
    "embed_dim": (24, 48),
    "depth": ((1, 2, 0), (1, 1, 0)),
    "num_heads": (3, 3),
    "mlp_ratio": (3, 3, 1),
    "multi_conv": False,
    "num_classes": 10,
}
STEM = {
    "img_size": 48,
    "img_scale": (1.0, 1.0),
    "patch_size": (12, 16),
    "embed_dim": (24, 48),
    "depth": ((1, 1, 0),),
    "num_heads": (3, 3),
    "mlp_ratio": (2, 2, 1),
    "multi_conv": True,
    "num_classes": 10,
}


# ---------------------------------------------------------------------------------------------------------------
# Shared pieces
# ---------------------------------------------------------------------------------------------------------------


def allow_bare_torchvision() -> list[torch.library.Library]:
    """Let torchvision be imported although its compiled operators do not fit the installed torch.

    Only its Python image transforms are used here, and those need no compiled operator.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        importlib.import_module("torchvision")
        return [library]
    return []


def stand_in(name: str, **content: Any) -> None:
    """Put a module of this content in the place of one that is not there."""
    module = types.ModuleType(name)
    module.__dict__.update(content)
    sys.modules[name] = module


def moved_modules() -> None:
    """Put stand-ins where older code looks for what timm has moved."""
    layers = importlib.import_module("timm.layers")
    stand_in("timm.models.layers", **{n: getattr(layers, n) for n in ("DropPath", "to_2tuple", "trunc_normal_")})
    stand_in("timm.models.registry", register_model=lambda function: function)


def u(name: str, shape: Sequence[int]) -> np.ndarray:
    """Return the float64 array of pseudo-random values in [-1, 1) that belongs to `name`."""
    index = np.arange(1, math.prod(shape) + 1, dtype=np.float64)
    phase = sum(name.encode()) % 97
    value = np.sin(12.9898 * index + phase) * 43758.5453
    return (2 * (value - np.floor(value)) - 1).reshape(shape)


def tensor(values: np.ndarray) -> torch.Tensor:
    """Return `values` as a float32 tensor."""
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))


def seed_everything() -> None:
    """Seed the three generators that timm draws from."""
    random.seed(SEED)
    np.random.seed(SEED)
    torch.manual_seed(SEED)


def short(value: float, digits: int = 9) -> float:
    """Round to `digits` significant digits; nine identify every float32."""
    return float(f"{float(value):.{digits}g}")


def numbers(values: Any, digits: int = 9) -> list[float]:
    """Return an array's or a tensor's elements, row-major, as short floats."""
    if isinstance(values, torch.Tensor):
        values = values.detach().numpy()
    return [short(value, digits) for value in np.asarray(values).reshape(-1)]


def quantiles(values: Sequence[float]) -> list[float]:
    """Return the 101 quantiles of `values` at the probabilities 0, 0.01, ..., 1."""
    return numbers(np.quantile(np.asarray(values, dtype=np.float64), PROBABILITIES), digits=7)


def crc(image: Image.Image | np.ndarray) -> int:
    """Return zlib.crc32 of the uint8 bytes in height, width, channel order."""
    return zlib.crc32(np.ascontiguousarray(image, dtype=np.uint8).tobytes())


def layout(value: Any, indent: str = "") -> str:
    """Format JSON with everything short and every innermost list or object on one line."""
    parts = list(value.values()) if isinstance(value, dict) else value
    line = json.dumps(value)
    if not isinstance(parts, list) or len(line) <= 120 or not any(isinstance(part, dict | list) for part in parts):
        return line
    inner = indent + " "
    if isinstance(value, dict):
        lines = [f"{inner}{json.dumps(str(key))}: {layout(part, inner)}" for key, part in value.items()]
        return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
    return "[\n" + ",\n".join(inner + layout(part, inner) for part in value) + f"\n{indent}]"


def write_json(name: str, about: str, content: dict[str, Any]) -> None:
    """Write `content` to a JSON file, after a note of what made it."""
    versions = {"python": platform.python_version()} | {package: version(package) for package in PACKAGES}
    meta = {"about": about, "made_by": f"tests/data/{Path(__file__).name}", "versions": versions}
    plain = json.loads(json.dumps({"meta": meta} | content))
    (FOLDER / name).write_text(layout(plain) + "\n", encoding="utf-8")


def photo(name: str) -> Image.Image:
    """Return one of scikit-learn's two sample photographs, both 640 wide and 427 high, as RGB."""
    data = (importlib.resources.files("sklearn.datasets.images") / name).read_bytes()
    return Image.open(io.BytesIO(data)).convert("RGB")


# ---------------------------------------------------------------------------------------------------------------
# The model: gradients and a short training run
# ---------------------------------------------------------------------------------------------------------------


def official_name(name: str) -> str:
    """Turn timm's parameter name into the one of the official checkpoints."""
    for stem in ("pos_embed_", "cls_token_"):
        name = name.replace(stem, stem[:-1] + ".")
    return name


def weight(name: str, shape: Sequence[int]) -> np.ndarray:
    """Return the value that the rule gives to the parameter with this official name."""
    values = u(name, shape)
    if name.startswith(("pos_embed", "cls_token")):
        return 0.2 * values
    if len(shape) == 1:
        return 1 + 0.1 * values if name.endswith(".weight") else 0.05 * values
    return values * math.sqrt(3 / math.prod(shape[1:]))


def build_model(config: dict[str, Any]) -> nn.Module:
    """Return a small CrossViT in float32 with the rule's weights and no dropout of any kind."""
    from timm.models.crossvit import CrossVit

    model = CrossVit(**config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensor(weight(official_name(name), parameter.shape)))
    return model


def soft_loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the mean over the batch of the cross entropy with soft targets."""
    return -(target * torch.log_softmax(logits, dim=-1)).sum(-1).mean()


def softmax(values: np.ndarray) -> np.ndarray:
    """Return the softmax over the last axis in float64."""
    exponential = np.exp(values - values.max(-1, keepdims=True))
    return exponential / exponential.sum(-1, keepdims=True)


def gradients_of(model: nn.Module, size: int, classes: int, batch: int = 3) -> dict[str, Any]:
    """Return logits, loss and a summary of every gradient of one model."""
    logits = model(tensor(1.5 * u("input", (batch, 3, size, size))))
    loss = soft_loss(logits, tensor(softmax(2 * u("target", (batch, classes)))))
    loss.backward()
    gradients = {}
    for name, parameter in model.named_parameters():
        values = parameter.grad.double()
        key = official_name(name)
        gradients[key] = {
            "shape": list(parameter.shape),
            "sum": short(values.sum()),
            "norm": short(values.norm()),
            "dot": short((values.numpy() * u(key, parameter.shape)).sum()),
            "first": numbers(values.reshape(-1)[:4]),
        }
    return {"logits": [numbers(row) for row in logits], "loss": short(loss.detach()), "gradients": gradients}


def gradient_case(config: dict[str, Any], batch: int = 3) -> dict[str, Any]:
    """Return logits, loss and a summary of every gradient of one CrossViT."""
    model = build_model(config).eval()
    sizes = [list(size) for size in model.img_size_scaled]
    about = {"config": config | {"qkv_bias": True, "norm_eps": 1e-6, "batch": batch, "branch_sizes": sizes}}
    return about | gradients_of(model, config["img_size"], config["num_classes"], batch)


def build_deit(config: dict[str, Any], multi_conv: bool = False) -> nn.Module:
    """Return timm's VisionTransformer with the rule's weights; with CrossViT's three-convolution stem where asked."""
    from timm.models.crossvit import PatchEmbed
    from timm.models.vision_transformer import VisionTransformer

    model = VisionTransformer(**config)
    if multi_conv:
        sizes = {"img_size": config["img_size"], "patch_size": config["patch_size"]}
        model.patch_embed = PatchEmbed(**sizes, embed_dim=config["embed_dim"], multi_conv=True)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensor(weight(name, parameter.shape)))
    return model.eval()


def make_deit() -> None:
    """Write deit.json."""
    small = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "mlp_ratio": 3.0}
    small |= {"num_classes": 10}
    stem = small | {"img_size": 48, "patch_size": 16, "depth": 1}
    rows, cases = [], {}
    for name, dim, heads in (("deit_tiny", 192, 3), ("deit_small", 384, 6)):
        model = build_deit({"embed_dim": dim, "num_heads": heads})
        with torch.no_grad():
            logits = model(tensor(1.5 * u("input", (2, 3, 224, 224))))
        sums = {"sum": short(logits.double().sum()), "abs_sum": short(logits.double().abs().sum())}
        rows.append({"model": name, "first": numbers(logits[0, :4]), "second": short(logits[1, 0])} | sums)
    for name, config, multi_conv in (("linear", small, False), ("stem", stem, True)):
        found = gradients_of(build_deit(config, multi_conv), config["img_size"], config["num_classes"])
        cases[name] = {"config": config | {"multi_conv": multi_conv}} | found
    about = "Logits of DeiT-Ti and S; logits, loss and gradients of two small ones, the second with CrossViT's stem."
    write_json("deit.json", about, {"rows": rows, "cases": cases})


def make_gradients() -> None:
    """Write gradients.json."""
    cases = {"linear": gradient_case(LINEAR), "stem": gradient_case(STEM)}
    about = (
        "Logits, loss and gradients of two small CrossViTs in float32. A key's bias has no influence on the output, "
        "so the gradients of attn.wk.bias and of the middle third of attn.qkv.bias are only rounding noise."
    )
    write_json("gradients.json", about, {"cases": cases})


def summary(name: str, values: torch.Tensor) -> dict[str, Any]:
    """Return a tensor's shape, sum, norm, dot product with `u(name)` and first four values."""
    wide = values.detach().double()
    dot = (wide.numpy() * u(name, values.shape)).sum()
    numbers_of = {"sum": short(wide.sum()), "norm": short(wide.norm()), "dot": short(dot)}
    return {"shape": list(values.shape)} | numbers_of | {"first": numbers(values.reshape(-1)[:4])}


def feature_case(config: dict[str, Any], batch: int = 2) -> dict[str, Any]:
    """Return the tokens and grids of one model after its last encoder, by timm's own functions."""
    model = build_model(config).eval()
    images = tensor(1.5 * u("input", (batch, 3, config["img_size"], config["img_size"])))
    count = len(config["depth"])
    last = [count - 1, 2 * count - 1]
    content = {"config": config | {"branch_sizes": [list(size) for size in model.img_size_scaled]}, "batch": batch}
    for i, tokens in enumerate(model.forward_features(images)):
        content[f"cls_token.{i}"] = summary(f"cls_token.{i}", tokens[:, 0])
    for key, norm in (("grid", True), ("raw_grid", False)):
        grids = model.forward_intermediates(images, indices=last, norm=norm, intermediates_only=True)
        for i, grid in enumerate(grids):
            content[f"{key}.{i}"] = summary(f"{key}.{i}", grid)
    return content


def attention_case(config: dict[str, Any], batch: int = 2) -> dict[str, Any]:
    """Return what every attention layer of one model passes on to its (idle) dropout, by the layer's name."""
    model = build_model(config).eval()
    found: dict[str, Any] = {}

    def watch(name: str) -> Callable[..., None]:
        return lambda _, __, output: found.update({name: summary(name, output)})

    for name, module in model.named_modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False  # the fused operator never shows its weights
        if name.endswith(".attn_drop"):
            module.register_forward_hook(watch(name.removesuffix(".attn_drop")))
    with torch.no_grad():
        model(tensor(1.5 * u("input", (batch, 3, config["img_size"], config["img_size"]))))
    return {"config": config | {"branch_sizes": [list(size) for size in model.img_size_scaled]}, "maps": found}


def make_features() -> None:
    """Write features.json."""
    nine = {"img_size": 240, "img_scale": (1.0, 224 / 240), "patch_size": (12, 16), "embed_dim": (128, 256)}
    nine |= {"depth": ((1, 3, 0),) * 3, "num_heads": (4, 4), "mlp_ratio": (3, 3, 1), "multi_conv": False}
    about = "What CrossViTs in float32 hold after their last encoder, and the attention of a small one."
    features = {"small": feature_case(LINEAR), "crossvit_9": feature_case(nine)}
    write_json("features.json", about, {"features": features, "attention": attention_case(LINEAR)})


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split the parameters as the official training does: one-dimensional ones and biases do not decay."""
    parameters = list(model.named_parameters())
    kept = [value for name, value in parameters if value.ndim > 1 and not name.endswith(".bias")]
    rest = [value for name, value in parameters if value.ndim <= 1 or name.endswith(".bias")]
    return [{"params": kept, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]


def smooth_targets(labels: np.ndarray, classes: int, smoothing: float) -> np.ndarray:
    """Return one-hot targets with label smoothing spread over all classes."""
    off = smoothing / classes
    targets = np.full((len(labels), classes), off)
    targets[np.arange(len(labels)), labels] = 1 - smoothing + off
    return targets


def make_losses20(steps: int = 20, batch: int = 4, lr: float = 1e-3, weight_decay: float = 0.05) -> None:
    """Write losses20.json."""
    model = build_model(LINEAR).train()
    optimizer = torch.optim.AdamW(decay_groups(model, weight_decay), lr=lr)
    losses = []
    for step in range(steps):
        images = tensor(1.5 * u(f"input{step}", (batch, 3, 36, 36)))
        labels = (step * batch + np.arange(batch)) * 7 % 10
        loss = soft_loss(model(images), tensor(smooth_targets(labels, 10, 0.1)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(short(loss.detach()))
    about = "The loss before each of 20 AdamW steps of the linear CrossViT. pos_embed and cls_token decay too."
    optimizer_settings = {"name": "AdamW", "lr": lr, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": weight_decay}
    content = {"config": LINEAR, "optimizer": optimizer_settings, "batch": batch, "smoothing": 0.1, "losses": losses}
    write_json("losses20.json", about, content)


# ---------------------------------------------------------------------------------------------------------------
# Optimizers and the learning-rate schedule
# ---------------------------------------------------------------------------------------------------------------

Optimizer = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]


def optimizer_run(make: Optimizer, lrs: Sequence[float], decays: Sequence[float]) -> dict[str, Any]:
    """Step two small tensors once for each learning rate and keep what they are after some steps."""
    shapes = ((4, 5), (7,))
    tensors = [nn.Parameter(tensor(u(f"p{i}", shape))) for i, shape in enumerate(shapes)]
    groups = [{"params": [t], "weight_decay": decay} for t, decay in zip(tensors, decays, strict=True)]
    optimizer = make(groups)
    after = {}
    for step, lr in enumerate(lrs):
        tensors[0].grad = tensor(u(f"g{step}.0", shapes[0]) * 10.0 ** -(step % 4))
        tensors[1].grad = tensor(u(f"g{step}.1", shapes[1]))
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        if step + 1 in (1, 10, len(lrs)):
            after[str(step + 1)] = {"p0": numbers(tensors[0]), "p1": numbers(tensors[1])}
    return {"shapes": {"p0": shapes[0], "p1": shapes[1]}, "lrs": numbers(lrs, 17), "after": after}


def ramp(lr: float, steps: int = 50) -> list[float]:
    """Return learning rates that rise linearly to `lr`."""
    return [lr * (step + 1) / steps for step in range(steps)]


def make_adamw(lr: float = 4e-3) -> None:
    """Write adamw.json."""
    settings = {"betas": (0.9, 0.999), "eps": 1e-8}
    decays = (0.05, 0.0)
    run = optimizer_run(lambda groups: torch.optim.AdamW(groups, lr=lr, **settings), ramp(lr), decays)
    about = "Two tensors after 1, 10 and 50 steps of torch.optim.AdamW in float32, the learning rate set each step."
    write_json("adamw.json", about, {"settings": settings | {"weight_decay": decays}} | run)


def make_sgd(lr: float = 0.01) -> None:
    """Write sgd.json."""
    settings = {"momentum": 0.9, "dampening": 0.0, "nesterov": False}
    decays = (1e-4, 0.0)
    run = optimizer_run(lambda groups: torch.optim.SGD(groups, lr=lr, **settings), ramp(lr), decays)
    about = "Two tensors after 1, 10 and 50 steps of torch.optim.SGD in float32, the learning rate set each step."
    write_json("sgd.json", about, {"settings": settings | {"weight_decay": decays}} | run)


def make_schedule(base_lr: float = 0.004, epochs: int = 300) -> None:
    """Write schedule.json."""
    from timm.scheduler import CosineLRScheduler

    settings = {"t_initial": epochs, "lr_min": 1e-5, "warmup_t": 30, "warmup_lr_init": 1e-6}
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=base_lr)
    scheduler = CosineLRScheduler(optimizer, warmup_prefix=False, t_in_epochs=True, **settings)
    lrs = []
    for epoch in range(epochs):
        lrs.append(optimizer.param_groups[0]["lr"])
        scheduler.step(epoch)
    about = (
        "The learning rate in force during each epoch of the official training, which calls scheduler.step(epoch) "
        "after the epoch with that epoch's own number: every value comes one epoch late."
    )
    content = {"settings": settings | {"base_lr": base_lr, "warmup_prefix": False}, "lrs": numbers(lrs, 17)}
    write_json("schedule.json", about, content)


def make_repeats(pictures: int = 700, ranks: int = 4, repeats: int = 3, epoch: int = 2) -> None:
    """Write repeats.json."""
    from timm.data.distributed_sampler import RepeatAugSampler

    samplers = [RepeatAugSampler(range(pictures), ranks, rank, num_repeats=repeats) for rank in range(ranks)]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    order = torch.randperm(pictures, generator=torch.Generator().manual_seed(epoch)).tolist()
    about = "An order of pictures, and which of them the repeated-augmentation sampler then gives each rank."
    content = {"pictures": pictures, "repeats": repeats, "order": order, "ranks": [list(s) for s in samplers]}
    write_json("repeats.json", about, content)


# ---------------------------------------------------------------------------------------------------------------
# RandAugment
# ---------------------------------------------------------------------------------------------------------------


def level_args(name: str, magnitude: float, sign: int) -> tuple[float, ...]:
    """Return timm's arguments of an operation, with its random negation forced to `sign`."""
    from timm.data import auto_augment

    level_to_arg = auto_augment.LEVEL_TO_ARG[name]
    if level_to_arg is None:
        return ()
    with mock.patch.object(auto_augment, "_randomly_negate", lambda level: sign * level):
        return level_to_arg(magnitude, POLICY_PARAMS)


def op_cases(name: str) -> Iterator[dict[str, Any]]:
    """Yield one operation with every magnitude, sign and resampling filter worth a check."""
    for magnitude in MAGNITUDES:
        for sign in (1, -1) if name in SIGNED else (1,):
            args = level_args(name, magnitude, sign)
            for resample in ("BILINEAR", "BICUBIC") if name in GEOMETRIC else (None,):
                yield {"op": name, "magnitude": magnitude, "sign": sign, "args": args, "resample": resample}


def rand_augment_sources() -> dict[str, Image.Image]:
    """Return a piece of a photograph, and the same with each channel squeezed into a narrower range.

    The piece already spans 0 to 255 in every channel, which would leave AutoContrast nothing to do.
    """
    source = photo("china.jpg").crop(CROP_BOX)
    dull = np.asarray(source) // np.array(DULL_DIVISORS, np.uint8) + DULL_OFFSET
    return {"source": source, "dull": Image.fromarray(dull.astype(np.uint8))}


def rand_augment_cases() -> Iterator[dict[str, Any]]:
    """Yield the cases on the piece itself, then those on the dull one, where geometry would add nothing."""
    from timm.data import auto_augment

    names = auto_augment._RAND_INCREASING_TRANSFORMS
    for source, chosen in {"source": names, "dull": [name for name in names if name not in GEOMETRIC]}.items():
        for name in chosen:
            for case in op_cases(name):
                yield {"source": source} | case


def make_rand_augment() -> None:
    """Write rand_augment.npz and rand_augment.json."""
    from timm.data import auto_augment

    sources = rand_augment_sources()
    arrays = {"source": np.asarray(sources["source"])}
    cases = []
    for case in rand_augment_cases():
        resample = Image.Resampling[case["resample"] or "BICUBIC"]
        operation = auto_augment.NAME_TO_OP[case["op"]]
        result = np.asarray(operation(sources[case["source"]], *case["args"], fillcolor=FILL, resample=resample))
        case["crc32"] = crc(result)
        if case["magnitude"] == KEPT_MAGNITUDE and case["source"] == "source":
            case["array"] = f"case_{len(cases):03d}"
            arrays[case["array"]] = result
        cases.append(case)
    np.savez_compressed(FOLDER / "rand_augment.npz", **arrays)
    about = (
        f"timm's operations of {POLICY} on a 96x96 piece of china.jpg (the array 'source' of rand_augment.npz), and on "
        "'dull', which is source // divisors + offset. crc32 is zlib.crc32 of the result's uint8 HWC bytes; a result "
        "of magnitude 9 on the source is also the named array."
    )
    content = {"crop_box": CROP_BOX, "source_crc32": crc(sources["source"]), "dull_crc32": crc(sources["dull"])}
    content |= {"dull_divisors": DULL_DIVISORS, "dull_offset": DULL_OFFSET, "fillcolor": FILL, "cases": cases}
    write_json("rand_augment.json", about, content)


class DrawRecorder:
    """Watches timm's RandAugment and keeps, for each image, what was drawn."""

    def __init__(self) -> None:
        self.images: list[list[dict[str, Any]]] = []

    def draw(self, count: int) -> None:
        """Run the policy `count` times on a tiny image."""
        from timm.data import auto_augment

        policy = auto_augment.rand_augment_transform(POLICY, dict(POLICY_PARAMS))
        image = photo("china.jpg").crop((300, 200, 308, 208))
        policy.ops = [self._watched(operation) for operation in policy.ops]
        with mock.patch.object(auto_augment, "_interpolation", self._watched_filter(auto_augment._interpolation)):
            for _ in range(count):
                self.images.append([])
                policy(image)

    def _watched(self, operation: Any) -> Callable[[Image.Image], Image.Image]:
        """Wrap one operation so that a draw of it leaves a record, and an application completes the record."""
        level_fn, aug_fn = operation.level_fn, operation.aug_fn

        def level(magnitude: float, params: dict[str, Any]) -> tuple[float, ...]:
            self.images[-1][-1] |= {"applied": True, "magnitude": magnitude}
            return level_fn(magnitude, params) if level_fn is not None else ()

        def apply(image: Image.Image, *args: float, **kwargs: Any) -> Image.Image:
            if operation.name in SIGNED:
                neutral = 1.0 if operation.name in ENHANCING else 0.0
                self.images[-1][-1]["sign"] = "+" if args[0] > neutral else "-"
            return aug_fn(image, *args, **kwargs)

        def call(image: Image.Image) -> Image.Image:
            self.images[-1].append({"op": operation.name, "applied": False})
            return operation(image)

        operation.level_fn, operation.aug_fn = level, apply
        return call

    def _watched_filter(self, choose: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], Any]:
        """Wrap timm's choice of the resampling filter."""

        def chosen(kwargs: dict[str, Any]) -> Any:
            result = choose(kwargs)
            self.images[-1][-1]["resample"] = Image.Resampling(result).name
            return result

        return chosen


def counts_by_op(records: list[dict[str, Any]], field: str) -> dict[str, dict[str, int]]:
    """Count the values of `field` for each operation that has it."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for record in records:
        if field in record:
            counts[record["op"]][record[field]] += 1
    return {name: dict(sorted(counts[name].items())) for name in sorted(counts)}


def make_rand_augment_draws() -> None:
    """Write rand_augment_draws.json."""
    seed_everything()
    recorder = DrawRecorder()
    recorder.draw(DRAWS)
    records = [record for image in recorder.images for record in image]
    applied = [record for record in records if record["applied"]]
    magnitudes = [record["magnitude"] for record in applied]
    content = {
        "policy": POLICY,
        "images": DRAWS,
        "chosen": dict(sorted(Counter(record["op"] for record in records).items())),
        "applied": dict(sorted(Counter(record["op"] for record in applied).items())),
        "applied_per_image": dict(sorted(Counter(sum(r["applied"] for r in i) for i in recorder.images).items())),
        "same_op_twice": sum(first["op"] == second["op"] for first, second in recorder.images),
        "magnitude_quantiles": quantiles(magnitudes),
        "magnitude_at_bound": sum(magnitude == 10 for magnitude in magnitudes),
        "signs": counts_by_op(records, "sign"),
        "resamples": counts_by_op(records, "resample"),
    }
    about = "Counts over draws of timm's RandAugment. Magnitudes, signs and filters are those of applied operations."
    write_json("rand_augment_draws.json", about, content)


# ---------------------------------------------------------------------------------------------------------------
# Random crops, random erasing, mixing
# ---------------------------------------------------------------------------------------------------------------


def crop_statistics(width: int = 640, height: int = 427) -> dict[str, Any]:
    """Return the quantiles of timm's random resized crop."""
    from timm.data.transforms import RandomResizedCropAndInterpolation

    seed_everything()
    image = Image.new("RGB", (width, height))
    scale, ratio = (0.08, 1.0), (3 / 4, 4 / 3)
    draw = RandomResizedCropAndInterpolation.get_params
    top, left, h, w = np.array([draw(image, scale, ratio) for _ in range(DRAWS)]).T
    inner_x, inner_y = w < width, h < height
    widest = round(height * ratio[1])
    fallback = (left == (width - widest) // 2) & (top == 0) & (h == height) & (w == widest)
    return {
        "image": {"width": width, "height": height},
        "draws": DRAWS,
        "fallbacks": int(np.sum(fallback)),
        "area_fraction": quantiles(w * h / (width * height)),
        "log_aspect": quantiles(np.log(w / h)),
        "x_fraction": quantiles(left[inner_x] / (width - w[inner_x])),
        "y_fraction": quantiles(top[inner_y] / (height - h[inner_y])),
    }


def erased_box(image: torch.Tensor) -> tuple[int, int, int, int] | None:
    """Return top, left, height and width of what is no longer zero, or None."""
    changed = image[0] != 0
    rows, columns = torch.nonzero(changed.any(1)), torch.nonzero(changed.any(0))
    if len(rows) == 0:
        return None
    top, left = int(rows[0]), int(columns[0])
    return top, left, int(rows[-1]) - top + 1, int(columns[-1]) - left + 1


def erasing_statistics(size: int = 240) -> dict[str, Any]:
    """Return the quantiles of timm's random erasing and the moments of its noise."""
    from timm.data.random_erasing import RandomErasing

    seed_everything()
    settings = {"probability": 0.25, "mode": "pixel", "max_count": 1}
    erase = RandomErasing(min_area=0.02, max_area=1 / 3, min_aspect=0.3, device="cpu", **settings)
    boxes, total, squares, count = [], 0.0, 0.0, 0
    for _ in range(DRAWS):
        image = erase(torch.zeros(3, size, size))
        box = erased_box(image)
        if box is not None:
            boxes.append(box)
            total += float(image.sum(dtype=torch.float64))
            squares += float(image.double().square().sum())
            count += 3 * box[2] * box[3]
    top, left, h, w = np.array(boxes).T
    return {
        "image": {"channels": 3, "width": size, "height": size},
        "draws": DRAWS,
        "erased": len(boxes),
        "area_fraction": quantiles(h * w / size**2),
        "log_aspect": quantiles(np.log(h / w)),
        "top": quantiles(top),
        "left": quantiles(left),
        "top_fraction": quantiles(top / (size - h)),
        "left_fraction": quantiles(left / (size - w)),
        "noise_mean": short(total / count, 6),
        "noise_std": short(math.sqrt(squares / count - (total / count) ** 2), 6),
    }


def mixing_statistics(size: int = 240) -> dict[str, Any]:
    """Return the quantiles of timm's mixup and cutmix parameters."""
    from timm.data import mixup

    seed_everything()
    mixer = mixup.Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, prob=1.0, switch_prob=0.5, mode="batch")
    boxes: list[tuple[int, int, int, int]] = []
    mixed, cut = [], []

    def watched(*args: Any, **kwargs: Any) -> tuple[tuple[int, int, int, int], float]:
        box, lam = original(*args, **kwargs)
        boxes.append(box)
        return box, lam

    original = mixup.cutmix_bbox_and_lam
    with mock.patch.object(mixup, "cutmix_bbox_and_lam", watched):
        for _ in range(DRAWS):
            before = len(boxes)
            lam = mixer._mix_batch(torch.zeros(2, 1, size, size))
            (cut if len(boxes) > before else mixed).append(lam)
    top, bottom, left, right = np.array(boxes).T
    return {
        "image": {"width": size, "height": size},
        "draws": DRAWS,
        "cutmix": len(cut),
        "mixup_lambda": quantiles(mixed),
        "cutmix_lambda": quantiles(cut),
        "cutmix_height": quantiles(bottom - top),
        "cutmix_width": quantiles(right - left),
    }


def make_crops() -> None:
    """Write crops.json."""
    about = (
        "Quantiles at the probabilities 0, 0.01, ..., 1 of what timm draws for random resized crops, random erasing "
        "and mixing. Aspect is width / height for crops and height / width for erasing. Offsets as fractions leave "
        "out crops that fill that side; cutmix lambda is the corrected one."
    )
    content = {"crop": crop_statistics(), "erasing": erasing_statistics(), "mixing": mixing_statistics()}
    write_json("crops.json", about, content)


def make_mixing() -> None:
    """Write mixing.npz."""
    from timm.data import mixup

    arrays = {}
    draws = {"mixup": (0.3, False), "cutmix": (0.5, True)}
    for name, draw in draws.items():
        mixer = mixup.Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=10)
        with contextlib.ExitStack() as stack:
            stack.enter_context(mock.patch.object(mixer, "_params_per_batch", lambda draw=draw: draw))
            stack.enter_context(mock.patch.object(mixup, "rand_bbox", lambda *_, **__: (3, 9, 5, 16)))
            images, targets = mixer(tensor(u("x", (4, 3, 16, 16))), torch.tensor([1, 5, 2, 9]))
        arrays |= {f"{name}_x": images.numpy(), f"{name}_target": targets.numpy()}
    np.savez_compressed(FOLDER / "mixing.npz", **arrays)


# ---------------------------------------------------------------------------------------------------------------
# Evaluation pixels
# ---------------------------------------------------------------------------------------------------------------

# (transposed, box): the box is cut after swapping rows and columns where asked.
EVAL_PIECES = (
    (False, (0, 0, 640, 427)),
    (True, (0, 0, 427, 640)),
    (False, (71, 53, 571, 386)),
    (True, (53, 71, 386, 571)),
    (False, (201, 97, 442, 372)),
    (False, (183, 111, 458, 352)),
)


def eval_piece(name: str, transposed: bool, box: tuple[int, int, int, int]) -> Image.Image:
    """Return a piece of a photograph, of odd size and perhaps upright."""
    image = photo(name)
    if transposed:
        image = image.transpose(Image.Transpose.TRANSPOSE)
    return image.crop(box)


def make_eval_pixels() -> None:
    """Write eval_pixels.json."""
    from torchvision import transforms

    cases = []
    for name in ("china.jpg", "flower.jpg"):
        for transposed, box in EVAL_PIECES:
            piece = eval_piece(name, transposed, box)
            for size, crop in ((274, 240), (408, 408)):
                bicubic = transforms.InterpolationMode.BICUBIC
                resized = transforms.Resize(size, interpolation=bicubic, antialias=True)(piece)
                pixels = np.asarray(transforms.CenterCrop(crop)(resized))
                case = {"photo": name, "transposed": transposed, "box": box, "size": piece.size, "resize": size}
                case |= {"crop": crop, "resized_size": resized.size, "resized_crc32": crc(resized)}
                case |= {"crc32": crc(pixels), "first_pixels": pixels[0, :8].tolist()}
                cases.append(case)
    about = (
        "torchvision's Resize (bicubic, antialias) and CenterCrop on pieces of two photographs. Sizes are width, "
        "height; crc32 is over uint8 HWC bytes; photo_crc32 tells whether a JPEG decoder gives the same pixels."
    )
    photos = {name: crc(photo(name)) for name in ("china.jpg", "flower.jpg")}
    write_json("eval_pixels.json", about, {"photo_crc32": photos, "cases": cases})


# ---------------------------------------------------------------------------------------------------------------
# Weights files
# ---------------------------------------------------------------------------------------------------------------

TINY = {
    "img_size": 16,
    "img_scale": (1.0, 1.0),
    "patch_size": (4, 8),
    "embed_dim": (4, 8),
    "depth": ((1, 1, 0),),
    "num_heads": (2, 2),
    "mlp_ratio": (2, 2, 1),
    "multi_conv": False,
    "num_classes": 5,
}
GRIDS = ((4, 7, 3), (7, 4, 3), (5, 6, 1), (20, 34, 2))


class Hostile:
    """An object whose pickle makes a folder when it is loaded by an unpickler that runs what it reads."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, ("the_pickle_was_run",)


def odd_tensors() -> dict[str, torch.Tensor]:
    """Return tensors of many types, with strides, offsets and storages in common."""
    base = tensor(u("base", (6, 4)))
    floats = {"half": torch.float16, "bfloat16": torch.bfloat16, "double": torch.float64}
    found = {
        "base": base,
        "transposed": base.T,
        "rows": base[2:4],
        "column": base[:, 1],
        "every_other": base[::2, 1::2],
    }
    found |= {name: torch.from_numpy(u(name, (2, 3))).to(dtype) for name, dtype in floats.items()}
    found |= {"parameter": nn.Parameter(tensor(u("parameter", (3,)))), "empty": torch.zeros(0, 3)}
    whole = {"long": torch.int64, "int": torch.int32, "short": torch.int16, "char": torch.int8, "byte": torch.uint8}
    found |= {name: torch.arange(-3 if name != "byte" else 0, 5).to(dtype) for name, dtype in whole.items()}
    return found | {"bool": torch.tensor([True, False, True]), "scalar": torch.tensor(7)}


def training_checkpoint(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Return what the official training script saves, with a moving average besides."""
    moved = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([moved], lr=0.1)
    moved.sum().backward()
    optimizer.step()
    arguments = argparse.Namespace(model="crossvit_tiny_224", lr=0.004, device=torch.device("cpu"), dtype=torch.float32)
    content = {"model": state, "optimizer": optimizer.state_dict(), "epoch": 3, "args": arguments}
    return content | {
        "max_accuracy": np.float64(73.5),
        "model_ema": {name: 0.5 * value for name, value in state.items()},
    }


def make_weights() -> None:
    """Write weights.json and the files weights_*.pth and weights_timm.safetensors."""
    from safetensors.torch import save_file

    model = build_model(TINY).eval()
    state = model.state_dict()
    official = OrderedDict((official_name(name), value) for name, value in state.items())
    torch.save(state, FOLDER / "weights_timm.pth")
    save_file(state, FOLDER / "weights_timm.safetensors", {"format": "pt"})
    torch.save(training_checkpoint(official), FOLDER / "weights_training.pth", _use_new_zipfile_serialization=False)
    torch.save(odd_tensors(), FOLDER / "weights_odd.pth", pickle_protocol=4)
    torch.save(odd_tensors(), FOLDER / "weights_odd_legacy.pth", _use_new_zipfile_serialization=False)
    torch.save({"model": odd_tensors(), "extra": Hostile()}, FOLDER / "weights_hostile.pth")
    legacy = FOLDER / "weights_hostile_legacy.pth"
    torch.save({"model": odd_tensors(), "extra": Hostile()}, legacy, _use_new_zipfile_serialization=False)
    positions = []
    for size, new_size, dim in GRIDS:
        grid = tensor(u("grid", (1, size, size, dim))).permute(0, 3, 1, 2)
        new = nn.functional.interpolate(grid, (new_size, new_size), mode="bicubic", align_corners=False)
        values = new.permute(0, 2, 3, 1).double().numpy()
        dot = short((values * u("resized", values.shape)).sum())
        positions.append(
            {"size": size, "new_size": new_size, "dim": dim, "dot": dot, "first": numbers(values[0, 0, :4])}
        )
    odd = {
        name: {"shape": list(value.shape), "values": numbers(value.to(torch.float64))}
        for name, value in odd_tensors().items()
    }
    about = "Logits of the tiny CrossViT, the tensors of weights_odd.pth, and grids resized by interpolate (bicubic)."
    logits = [numbers(row) for row in model(tensor(1.5 * u("input", (2, 3, 16, 16))))]
    write_json("weights.json", about, {"config": TINY, "logits": logits, "odd": odd, "positions": positions})


MAKERS: dict[str, Callable[[], None]] = {
    "gradients": make_gradients,
    "deit": make_deit,
    "features": make_features,
    "adamw": make_adamw,
    "sgd": make_sgd,
    "losses20": make_losses20,
    "schedule": make_schedule,
    "repeats": make_repeats,
    "rand_augment": make_rand_augment,
    "rand_augment_draws": make_rand_augment_draws,
    "crops": make_crops,
    "eval_pixels": make_eval_pixels,
    "mixing": make_mixing,
    "weights": make_weights,
}


def main() -> None:
    """Make the files that the command line names, or all."""
    parser = argparse.ArgumentParser(description="Make the tests' reference numbers.")
    parser.add_argument("names", nargs="*", metavar="name", help=f"any of: {', '.join(MAKERS)} (default: all)")
    names = parser.parse_args().names or list(MAKERS)
    unknown = sorted(set(names) - set(MAKERS))
    if unknown:
        parser.error(f"unknown name: {', '.join(unknown)}")
    torch.set_num_threads(1)
    libraries = allow_bare_torchvision()
    for name in names:
        MAKERS[name]()
        print(f"made {name}")
    del libraries


if __name__ == "__main__":
    main()
