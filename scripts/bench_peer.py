"""What a user of PyTorch would run instead, as a benchmark's worker (worker.py). Needs no part of this project.

    python scripts/bench_peer.py model crossvit_9_240 8 forward|train    timm, eager
    python scripts/bench_peer.py mindcv crossvit_9 8 forward|train       MindCV's model, MindSpore's AdamWeightDecay
    python scripts/bench_peer.py mindcv-train crossvit_9 8 O0|O2         the step of MindCV's train.py
    python scripts/bench_peer.py input FOLDER 64 2                       timm's loader with the paper's augmentation
    python scripts/bench_peer.py onnx FILE 8 240 openvino|onnxruntime    an exported model
    python scripts/bench_peer.py export crossvit_9_240 8 FILE            writes timm's own export, and ends

`mindcv`s are run by this project's Python, the others by one of their own:
pip install torch==2.13.0 timm==1.0.31 onnx onnxruntime openvino
"""

import time

STARTED = time.perf_counter()

import os
import sys
from typing import Any

from worker import serve


def timm():
    """timm, also beside a build of PyTorch that lacks torchvision's own operators."""
    import torch

    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import timm

    timm.keep = library
    return timm


def model(name: str, batch: str, what: str):
    """Logits of a batch, or one AdamW step with soft targets."""
    net = timm().create_model(name)
    import torch

    images = torch.randn(int(batch), *net.pretrained_cfg["input_size"])
    targets = torch.full((int(batch), net.num_classes), 0.1 / net.num_classes)
    targets[:, 0] += 0.9
    if what == "forward":
        net.train(False)
        return torch.inference_mode()(lambda: net(images))
    net.train()
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3, weight_decay=0.05)

    def step() -> None:
        loss = torch.nn.functional.cross_entropy(net(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def mindcv(name: str, batch: str, what: str):
    """Logits of a batch, or one step with MindSpore's AdamWeightDecay, the fastest there is for it."""
    from mindspore import nn

    net, images, labels = mindcv_on_cpu(name, int(batch))
    if what == "forward":
        net.set_train(False)
        return lambda: net(images).asnumpy()
    rule = nn.AdamWeightDecay(net.trainable_params(), 1e-3)
    step = nn.TrainOneStepCell(nn.WithLossCell(net, nn.CrossEntropyLoss()), rule).set_train()
    return lambda: step(images, labels).asnumpy()


def mindcv_train(name: str, batch: str, level: str):
    """One step as MindCV's train.py makes it from a recipe of CrossViT: its AdamW, a fixed loss scale.

    level: of mixed precision, amp_level.
    """
    from mindcv.loss import create_loss
    from mindcv.optim import create_optimizer
    from mindcv.utils import create_trainer

    net, images, labels = mindcv_on_cpu(name, int(batch))
    scale = 1024.0
    decay = {"weight_decay": 0.05, "weight_decay_filter": "norm_and_bias"}
    rule = create_optimizer(net.trainable_params(), opt="adamw", lr=1e-3, loss_scale=scale, **decay)
    loss = create_loss("CE", label_smoothing=0.1)
    trainer = create_trainer(net, loss, rule, {}, level, "", "fixed", scale)
    step: Any = trainer.train_network
    step.set_train()
    return lambda: step(images, labels).asnumpy()


def mindcv_on_cpu(name: str, batch: int):
    """MindCV's model in graph mode, and a batch for it."""
    import mindspore as ms
    import numpy as np
    from mindspore import Tensor

    ms.set_context(mode=ms.GRAPH_MODE)
    ms.set_device("CPU")
    from mindcv.models import create_model

    images = Tensor(np.random.randn(batch, 3, 240, 240).astype(np.float32))
    return create_model(name), images, Tensor(np.zeros(batch, np.int32))


def loader(folder: str, batch: str, workers: str):
    """The next batch, endlessly."""
    timm()
    import torch
    from timm.data import Mixup, create_transform
    from torchvision.datasets import ImageFolder

    policy = {"auto_augment": "rand-m9-mstd0.5-inc1", "interpolation": "bicubic", "re_prob": 0.25, "re_mode": "pixel"}
    data = ImageFolder(folder, create_transform(240, is_training=True, **policy))
    mix = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=max(2, len(data.classes)))

    def batches():
        loading = torch.utils.data.DataLoader(
            data, int(batch), shuffle=True, num_workers=int(workers), drop_last=True, persistent_workers=True
        )
        while True:
            for images, labels in loading:
                yield mix(images, labels)

    stream = batches()
    return lambda: next(stream)


def exported(file: str, batch: str, side: str, runtime: str):
    """Logits of a batch from an ONNX file, float32, as many threads as there are cores."""
    import numpy as np

    threads = len(os.sched_getaffinity(0))
    images = np.random.default_rng(0).standard_normal((int(batch), 3, int(side), int(side)), np.float32)
    if runtime == "openvino":
        import openvino

        exact = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
        compiled = openvino.Core().compile_model(file, "CPU", exact)
        return lambda: compiled([images])
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda: session.run(None, {name: images})


def export(name: str, batch: str, file: str) -> None:
    """timm's model through torch.onnx."""
    net = timm().create_model(name).train(False)
    import torch

    images = torch.randn(int(batch), *net.pretrained_cfg["input_size"])
    torch.onnx.export(net, (images,), file, opset_version=18, dynamo=False)


if __name__ == "__main__":
    kind, *rest = sys.argv[1:]
    if kind == "export":
        export(*rest)
    else:
        run = {"model": model, "mindcv": mindcv, "mindcv-train": mindcv_train, "input": loader, "onnx": exported}[kind](
            *rest
        )
        run()
        ready = time.perf_counter() - STARTED
        run()
        serve(run, ready)
        os._exit(0)  # loaders' workers are not waited for
