"""Run by msrun in test_ranks.py: every rank goes through the cases below and prints what came of each, a JSON line.

The loop, the loader, the evaluation, the step and the collectives are the real ones; the model is one matrix, so that
it compiles at once. A case of several ranks is compared with the same on one, in the same process.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mindcv_crossvit import runtime

ROOT = Path(__file__).resolve().parent.parent
FOLDER = Path(os.environ.get("RANK_CASES", "."))
CASES: dict[str, Callable[[runtime.Runtime], Any]] = {}
SETTINGS = ["batch.global_batch=16", "batch.largest_per_device=2", "mix.group=2", "data.workers=0", "evaluate.batch=4"]
SETTINGS += ["schedule.warmup_epochs=0", "schedule.epochs=1", "augment.repeats=3"]


def case(function: Callable[[runtime.Runtime], Any]) -> None:
    CASES[function.__name__] = function


def toy_state(recipe, classes: int):
    import numpy as np
    from mindspore import Parameter, Tensor, nn, ops

    from mindcv_crossvit import build
    from mindcv_crossvit.training.loss_scale import LossScale
    from mindcv_crossvit.training.state import State, new_average

    class Toy(nn.Cell):
        def __init__(self):
            super().__init__()
            self.weight = Parameter(Tensor(np.zeros((3 * recipe.model.image_size**2, classes), np.float32)), "weight")
            self.bias = Parameter(Tensor(np.zeros(classes, np.float32)), "bias")

        def construct(self, images):
            return ops.matmul(images.reshape(images.shape[0], -1), self.weight) + self.bias

    model = Toy()
    optimizer = build.build_optimizer(recipe, model)
    return State(model, optimizer, new_average(model, optimizer), LossScale.for_precision(recipe.run.precision))


def train(
    process: runtime.Runtime,
    data,
    *changes: str,
    before=None,
    early=None,
    after=None,
    folder=None,
    stop_at: int | None = None,
) -> dict[str, Any]:
    """A run of the toy. before(update, inputs): the inputs of the step. after(update, model): damage to the model.

    early(update, inputs): the inputs of the micro-batches before the last of an update. folder: its run folder, where
    it goes on from what is there. stop_at: the update in which a stop is asked for.
    """
    import numpy as np
    from running import metrics

    from mindcv_crossvit import build
    from mindcv_crossvit.journal import Journal
    from mindcv_crossvit.plan import make_plan
    from mindcv_crossvit.recipe_file import load_recipe
    from mindcv_crossvit.training.checkpoint import read_checkpoint
    from mindcv_crossvit.training.checkpoint_folder import CheckpointFolder
    from mindcv_crossvit.training.loop import fit

    recipe = load_recipe(ROOT / "tests" / "tiny.yaml", [*SETTINGS, *changes])
    plan, state = make_plan(recipe, data, process.world), toy_state(recipe, len(data.class_names))
    folder = folder or FOLDER / f"run-{process.world}-{len(list(FOLDER.glob('run-*')))}"
    resumed = CheckpointFolder(folder).newest_whole()
    process.gather(np.zeros(1, np.int32))  # all have read it
    journal = Journal(folder if process.is_main else None, speaks=False)
    build.begin(state, recipe, plan, resumed, None, journal)
    views = {"train": build.train_view(recipe, data, plan), "val": build.eval_view(recipe, data)}
    found: dict[str, Any] = {}
    with build.build_loader(recipe, views) as loader:
        training = build.build_training(recipe, plan, data, process, journal, state, loader)
        apply = training.step.apply

        def watched(inputs, *rest):
            outcome = apply(before(state.update + 1, inputs) if before else inputs, *rest)
            if after:
                after(state.update + 1, training.model)
            training.stop.asked = training.stop.asked or state.update + 1 == stop_at
            return outcome

        training.step.apply = watched
        if early:
            add = training.step.add
            training.step.add = lambda inputs, *rest: add(early(state.update + 1, inputs), *rest)
        try:
            found["score"] = asdict(fit(training))
        except Exception as error:
            found["error"] = f"{type(error).__name__}: {error}"
    found |= {"update": state.update, "applied": state.applied, "skipped": state.skipped}
    found |= {"loss_scale": asdict(state.loss_scale), "best": [state.best_top1, state.best_update]}
    if process.is_main:
        found["log"] = (folder / "log.txt").read_text() if (folder / "log.txt").exists() else ""
        newest = CheckpointFolder(folder).newest_whole()
        found["saved"] = newest and newest.meta["update"]
        found["recorded"] = len(metrics(folder)) if (folder / "metrics.jsonl").exists() else 0
        best = folder / "best.safetensors"
        found["best_saved"] = best.exists() and read_checkpoint(best).meta["update"]
    found["weights"] = {name: p.asnumpy() for name, p in state.named().items()}
    return found


def plain(found: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in found.items() if k != "weights"}


def digits(train_size: int, val_size: int):
    import numpy as np

    from mindcv_crossvit.data.sources import Splits, Subset, open_data
    from mindcv_crossvit.recipe import Data

    whole = open_data(Data(source="digits"))
    parts = [Subset(s, np.arange(n), s.labels[:n]) for s, n in ((whole.train, train_size), (whole.val, val_size))]
    return Splits(parts[0], parts[1], whole.class_names)


@case
def sets_that_do_not_divide(process: runtime.Runtime) -> Any:
    """Training and validation pictures fewer than ranks, and not divisible; the same as on one rank."""
    import numpy as np

    found = []
    for sizes in ((3, 1), (37, 5)):
        several, one = (train(p, digits(*sizes)) for p in (process, runtime.Runtime("CPU")))
        off = max(float(np.abs(several["weights"][n] - one["weights"][n]).max()) for n in one["weights"])
        moved = float(np.abs(one["weights"]["model.weight"]).max())
        found.append({"off": off, "moved": moved, "several": several["score"], "one": one["score"]})
    return found


@case
def pictures_of_any_ranks_and_workers(process: runtime.Runtime) -> Any:
    """The pictures of two epochs' ends by this rank with one worker and with two, and all of them by one process."""
    from prepared_pictures import prepare

    mine = [prepare(process, 18, 22, workers) for workers in (1, 2)]
    return {"mine": mine, "all": prepare(runtime.Runtime("CPU"), 18, 22, 0)}


@case
def scores_of_any_size(process: runtime.Runtime) -> Any:
    """(size, batch) whose score is not, bit for bit, that of one rank."""
    import numpy as np

    from mindcv_crossvit.data.loader import Loader
    from mindcv_crossvit.data.transforms import EvalTransform, Normalise
    from mindcv_crossvit.data.views import EvalView
    from mindcv_crossvit.evaluation import evaluate

    transform, different, tried = EvalTransform(8, 1.0, Normalise((0.5,) * 3, (0.3,) * 3)), [], 0
    mix = np.random.default_rng(0).normal(size=(3 * 8 * 8, 10)).astype(np.float32)
    for size in (1, 3, 5, 17):
        for batch in (1, 4):
            val, scores = digits(1, size).val, []
            for p in (process, runtime.Runtime("CPU")):
                with Loader({"val": EvalView(val, transform, batch, False)}, 0) as loader:
                    logits = lambda images: np.stack([row.reshape(-1) @ mix for row in images])  # noqa: E731
                    scores.append(evaluate(logits, loader, val.labels, batch, p))
            tried += 1
            different += [(size, batch)] if scores[0] != scores[1] or scores[1].images != size else []
    return {"tried": tried, "different": different}


@case
def ranks_that_drift(process: runtime.Runtime) -> Any:
    """Another value on the last rank after update 3: seen when asked for, else at the next checkpoint."""
    from mindspore import Tensor

    def drift(update, model):
        if update == 3 and process.rank == process.world - 1:
            model.bias.set_data(Tensor(model.bias.asnumpy() + 1e-6))

    data = digits(128, 8)
    asked = train(process, data, "run.compare_every=5", after=drift)
    at_checkpoint = train(process, data, "checkpoint.every_updates=6", after=drift)
    return [plain(asked), plain(at_checkpoint)]


@case
def parameters_that_differ(process: runtime.Runtime) -> Any:
    """Made the same by the broadcast, then one of three is another on rank 1."""
    import numpy as np
    from mindspore import Parameter, Tensor

    parameters = [Parameter(Tensor(np.full((3, 2), k, np.float32)), name=f"p{k}") for k in range(3)]
    parameters[2].set_data(Tensor(np.full((3, 2), process.rank, np.float32)))
    process.broadcast(parameters)
    process.check_same(parameters, "after the broadcast")
    if process.rank == 1:
        parameters[1].set_data(Tensor(np.full((3, 2), 1 + 1e-6, np.float32)))
    try:
        process.check_same(parameters, "now")
    except RuntimeError as error:
        return {"said": str(error)}


@case
def a_loss_that_is_not_finite(process: runtime.Runtime) -> Any:
    """On the last rank only, in update 4."""
    return plain(train(process, digits(128, 8), "checkpoint.every_updates=3", before=spoils(process, 4)))


def spoils(process: runtime.Runtime, update: int):
    """Infinite pictures for the last rank in one update."""

    def spoil(now, inputs):
        spoiled = now == update and process.rank == process.world - 1
        return inputs._replace(images=inputs.images * float("inf")) if spoiled else inputs

    return spoil


@case
def a_loss_that_is_not_finite_far_from_a_save(process: runtime.Runtime) -> Any:
    """In update 6, on the last rank: in its last micro-batch, in an earlier one, with a loss scale, with clipping."""
    import numpy as np

    found, data = [], digits(128, 8)
    for name, settings in (("before", []), ("early", []), ("before", ["O3"]), ("before", ["optimizer.clip_norm=1"])):
        kept = {}

        def keep(update, model, kept=kept):
            if update == 5:
                kept.update({f"model.{p.name}": p.asnumpy().copy() for p in model.get_parameters()})

        settings = [s if "=" in s else f"run.precision={s}" for s in settings]
        run = train(process, data, *settings, after=keep, **{name: spoils(process, 6)})
        finite = all(np.isfinite(value).all() for value in run["weights"].values())
        same = all(np.array_equal(value, run["weights"][name]) for name, value in kept.items())
        found.append({**plain(run), "finite": finite, "same": same and len(kept) == 2})
    return found


@case
def parameters_that_are_not_finite(process: runtime.Runtime) -> Any:
    """They break with update 6, whose loss is fine, and a checkpoint is due."""
    from mindspore import Tensor

    def spoil(update, model):
        if update == 6:
            model.bias.set_data(Tensor(model.bias.asnumpy() * float("nan")))

    return plain(train(process, digits(128, 8), "checkpoint.every_updates=3", after=spoil))


@case
def gradients_that_overflow(process: runtime.Runtime) -> Any:
    """On the last rank only, with a finite loss: the weights are zero and its pictures are large."""
    import numpy as np

    def enlarge(update, inputs):
        return inputs._replace(images=inputs.images * np.float32(1e36)) if process.rank == process.world - 1 else inputs

    found = train(
        process,
        digits(128, 8),
        "run.precision=O2",
        "schedule.epochs=9",
        "evaluate.every_epochs=9",
        "checkpoint.every_epochs=9",
        before=enlarge,
    )
    return {**plain(found), "moved": float(np.abs(found["weights"]["model.weight"]).max())}


@case
def clipping_of_unlike_gradients(process: runtime.Runtime) -> Any:
    """One update of SGD with a learning rate of 1 from zero weights: what the parameters move by, and by hand."""
    import numpy as np
    from mindspore import ParameterTuple

    from mindcv_crossvit.recipe_file import load_recipe
    from mindcv_crossvit.training.step import Micro, Options, TrainStep

    settings = ["optimizer.name=sgd", "optimizer.momentum=0", "optimizer.weight_decay=0"]
    recipe, norm, rng = load_recipe(ROOT / "tests" / "tiny.yaml", settings), 0.5, np.random.default_rng(0)
    parts = []
    for rank in range(process.world):
        images = (rng.normal(size=(2, 3, 16, 16)) * 3**rank).astype(np.float32)
        parts.append(
            Micro(images, np.eye(10, dtype=np.float32)[rng.integers(10, size=2)], np.zeros((0, 2), np.float32))
        )

    def moved(mine: list[Micro], world: int) -> np.ndarray:
        state = toy_state(recipe, 10)
        options = Options(accumulation=len(mine), world=world, clip_norm=norm)
        step = TrainStep(state.model, state.optimizer, options, ParameterTuple([]))
        for part in mine[:-1]:
            step.add(part)
        assert step.apply(mine[-1], state.optimizer.scalars(1.0, 1)).finite
        return np.concatenate([p.asnumpy().reshape(-1) for p in state.model.get_parameters()])

    def gradient(part: Micro) -> np.ndarray:
        error = (0.1 - part.targets.astype(np.float64)) / 2  # softmax of zeros, less the target
        return np.concatenate([(part.images.reshape(2, -1).T @ error).reshape(-1), error.sum(0)])

    def clipped(gradient: np.ndarray) -> np.ndarray:
        return gradient * min(1.0, norm / np.linalg.norm(gradient))

    gradients = [gradient(part) for part in parts]
    several, one = moved([parts[process.rank]], process.world), moved(parts, 1)
    after, before = clipped(np.mean(gradients, 0)), np.mean([clipped(g) for g in gradients], 0)
    return {
        "off one rank": float(np.abs(several - one).max()),
        "off clip of the mean": float(np.abs(several + after).max()),
        "off mean of the clipped": float(np.abs(several + before).max()),
        "norm": float(np.linalg.norm(several)),
    }


@case
def a_stop_after_overflows(process: runtime.Runtime) -> Any:
    """Updates 1 and 2 are left out, the run is stopped in 5 and gone on with: what differs from one that is not."""
    import numpy as np

    def enlarge(update, inputs):
        return inputs._replace(images=inputs.images * np.float32(1e36)) if update < 3 else inputs

    settings, data = ["run.precision=O2", "schedule.epochs=2"], digits(128, 8)
    folder = FOLDER / f"stopped-{process.world}"
    whole = train(process, data, *settings, before=enlarge)
    stopped = train(process, data, *settings, before=enlarge, folder=folder, stop_at=5)
    resumed = train(process, data, *settings, folder=folder)
    differing = [name for name, value in whole["weights"].items() if (value != resumed["weights"][name]).any()]
    differing += [name for name in ("applied", "loss_scale", "best", "score") if whole[name] != resumed[name]]
    return {"stopped": plain(stopped), "resumed": plain(resumed), "differing": differing}


@case
def a_best_that_cannot_be_saved(process: runtime.Runtime) -> Any:
    """The score after update 8, which no later one betters; a folder is where its checkpoint would be."""
    folder = FOLDER / f"best-{process.world}"
    blocked = folder / "checkpoints" / "step-000000008.safetensors"

    def block(update, _):
        if process.is_main and update == 8:
            blocked.mkdir(parents=True)
        if process.is_main and update == 9:
            blocked.rmdir()

    settings = ["schedule.epochs=3", "checkpoint.every_updates=10", "checkpoint.on_failure=go_on", "optimizer.lr=1e-30"]
    settings += ["schedule.min_lr=0"]
    return plain(train(process, digits(128, 8), *settings, after=block, folder=folder))


@case
def pictures_that_cannot_be_read(process: runtime.Runtime) -> Any:
    from mindcv_crossvit.data.sources import open_data
    from mindcv_crossvit.recipe import Data

    data = open_data(Data(dir=str(FOLDER / "pictures")))
    settings = ["augment.repeats=1", "schedule.epochs=2", "data.bad_images=skip"]
    several, one = (train(p, data, *settings) for p in (process, runtime.Runtime("CPU")))
    stop = train(process, data, *settings[:2])
    only_val = data._replace(train=data.train.part(sound(data.train)))
    stop_val = train(process, only_val, *settings[:2])
    return {name: plain(f) for name, f in {"several": several, "one": one, "stop": stop, "val": stop_val}.items()}


@case
def storage_that_fails(process: runtime.Runtime) -> Any:
    """A picture that gives an input/output error, met by one rank; pictures that cannot be read may be skipped."""
    from mindcv_crossvit.data import storage
    from mindcv_crossvit.data.sources import open_data
    from mindcv_crossvit.recipe import Data

    storage.WAITS = (0.01,)
    data = open_data(Data(dir=str(FOLDER / "failing"), val_fraction=0.2))
    return plain(train(process, data, "augment.repeats=1", "data.bad_images=skip"))


@case
def answers_to_pictures(process: runtime.Runtime) -> dict[str, str]:
    return answers(sorted(path for path in (FOLDER / "pictures").rglob("*.*") if not path.is_dir()))


def answers(paths: list[Path]) -> dict[str, str]:
    """What each file gives: a checksum of its pixels, or why it gives none."""
    import zlib

    from mindcv_crossvit.data.images import BadImage
    from mindcv_crossvit.data.sources import FileSource

    found = {}
    for path in map(str, paths):
        try:
            image = FileSource([path], []).read(0)  # type: ignore[arg-type]
            found[path] = f"pixels {image.size} {zlib.crc32(image.tobytes())}"
        except BadImage as error:
            found[path] = str(error)
    return found


def sound(source) -> list[int]:
    from mindcv_crossvit.data.images import BadImage

    found = []
    for index in range(len(source)):
        try:
            source.read(index)
            found.append(index)
        except BadImage:
            pass
    return found


if __name__ == "__main__":
    process = runtime.start("CPU")
    for name, function in CASES.items():
        print("case", json.dumps({"name": name, "found": function(process)}), flush=True)
