"""From a recipe, its data and its plan to the objects the loop and the evaluation work with."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

from mindspore import ParameterTuple, nn

from .data.loader import Loader
from .data.sources import Splits
from .data.transforms import EvalTransform, Normalise, TrainTransform
from .data.views import EvalView, TrainView, View
from .errors import UserError
from .evaluation import Score
from .journal import Journal, NotSaved, manifest
from .models import catalog
from .models.registry import create_model
from .plan import Plan
from .presence import mark
from .process import StopRequest
from .recipe import Recipe
from .recipe_file import to_yaml
from .runtime import Runtime
from .training.checkpoint import Checkpoint
from .training.checkpoint_folder import CheckpointFolder
from .training.groups import freeze, make_groups, running_statistics
from .training.loop import Training
from .training.loss_scale import LossScale
from .training.optimizer import SGD, AdamW, GroupedOptimizer
from .training.saving import Saver
from .training.start import POSITION, fit_initial, model_of, other_devices
from .training.state import State, new_average
from .training.step import Options, TrainStep
from .versions import versions
from .weights.fit import Fit
from .weights.load import set_parameters
from .weights.read import Weights


def build_model(recipe: Recipe, classes: int, world: int = 1) -> nn.Cell:
    """The recipe's model for a number of classes. Raises UserError when MindCV has no such model.

    world: ranks of a training run.
    """
    m, ranks = recipe.model, world if recipe.run.sync_batch_norm else 1
    try:
        how: dict[str, Any] = {"ops": recipe.run.ops, "precision": recipe.run.precision, "seed": recipe.run.seed}
        how["ranks"] = ranks
        return create_model(m.name, classes, m.drop_path_rate, **how, **m.overrides())
    except ValueError as error:
        raise UserError(f"model.name: {error}") from error


def eval_view(recipe: Recipe, data: Splits) -> EvalView:
    """The validation pictures as the recipe evaluates them."""
    size, e = recipe.model.image_size, recipe.evaluate
    normalise = Normalise(recipe.data.mean, recipe.data.std)
    transform = EvalTransform(size, e.crop_fraction, normalise)
    return EvalView(data.val, transform, e.batch, recipe.data.bad_images == "skip")


def train_view(recipe: Recipe, data: Splits, plan: Plan) -> TrainView:
    """The training pictures as the recipe augments them."""
    transform = TrainTransform(recipe.model.image_size, recipe.augment, Normalise(recipe.data.mean, recipe.data.std))
    return TrainView(
        source=data.train,
        transform=transform,
        num_classes=plan.classes,
        smoothing=recipe.loss.label_smoothing,
        mix=recipe.mix,
        group=plan.mix_group,
        batch=plan.per_device,
        seed=recipe.run.seed,
        skip_bad=recipe.data.bad_images == "skip",
    )


def build_loader(recipe: Recipe, views: dict[str, View]) -> Loader:
    """Workers for the given views."""
    return Loader(views, recipe.data.workers, recipe.data.prefetch)


def new_state(recipe: Recipe, plan: Plan) -> State:
    """A fresh model with the recipe's optimizer over its trainable parameters."""
    model = build_model(recipe, plan.classes, plan.world)
    if recipe.optimizer.freeze:
        freeze(list(model.trainable_params()), recipe.optimizer.freeze)
    optimizer = build_optimizer(recipe, model)
    ema = new_average(model, optimizer) if recipe.ema.decay else ParameterTuple([])
    return State(model, optimizer, ema, LossScale.for_precision(recipe.run.precision))


def build_optimizer(recipe: Recipe, model: nn.Cell) -> GroupedOptimizer:
    """The recipe's rule over the model's trainable parameters."""
    o, config = recipe.optimizer, recipe.model.config()
    layers = catalog.family_of(config).layers(config) if config else 0
    groups = make_groups(list(model.trainable_params()), o.no_decay, o.layer_decay, layers)
    if o.name == "sgd":
        return SGD(groups, o.momentum, o.weight_decay)
    return AdamW(groups, o.betas, o.eps, o.weight_decay)


def begin(
    state: State, recipe: Recipe, plan: Plan, resumed: Checkpoint | None, initial: Weights | None, journal: Journal
) -> None:
    """Puts the state and the run folder where the run begins, and says where that is.

    Raises UserError when weights do not fit, and NotSaved when the folder cannot be written to.
    """
    mark("preparing")  # still, and not hanging
    if resumed:
        state.restore(resumed)
        journal.say(f"resumed   {resumed.path}, after update {state.update:,}")
        if journal.folder:
            try:
                CheckpointFolder(journal.folder, recipe.checkpoint.keep).begin(resumed, journal.say)
            except OSError as error:
                raise NotSaved(f"the checkpoints of {journal.folder} cannot be put in order: {error}") from error
        journal.forget_after(state.update)
        if note := other_devices(resumed.meta, plan, len(running_statistics(state.model)) > 0):
            journal.say(f"note      {note}")
        return
    journal.forget_after(0)  # of a run that ended before its first checkpoint
    if initial:
        fitted = fit_model(state.model, initial)
        for topic, text in fitted.report.lines():
            journal.say(f"{topic:<9} {text}")
        if state.ema:
            state.ema = new_average(state.model, state.optimizer)


def fit_model(model: nn.Cell, weights: Weights) -> Fit:
    """Loads initial weights into a model. Raises UserError when they do not fit."""
    parameters = {p.name: p for p in model.get_parameters()}
    config = getattr(model, "config", None)
    shapes = {name: tuple(p.shape) for name, p in parameters.items()}
    fitted = fit_initial(weights, shapes, getattr(config, "numerics", None))
    set_parameters(parameters, fitted.tensors)
    return fitted


def build_training(
    recipe: Recipe, plan: Plan, data: Splits, runtime: Runtime, journal: Journal, state: State, loader: Loader
) -> Training:
    """Everything the loop needs; the ranks begin with rank 0's parameters, which is checked."""
    runtime.broadcast(state.parameters())
    runtime.check_same(state.parameters(), "start")
    runtime.keep_graphs(**graph_facts(recipe, plan, state))
    return Training(
        recipe=recipe,
        plan=plan,
        runtime=runtime,
        model=state.model,
        step=TrainStep(
            state.model,
            state.optimizer,
            Options(plan.accumulation, plan.world, recipe.optimizer.clip_norm, state.loss_scale.dynamic),
            state.ema,
        ),
        state=state,
        loader=loader,
        val_labels=data.val.labels,
        journal=journal,
        saver=Saver(
            recipe=recipe,
            runtime=runtime,
            journal=journal,
            folder=CheckpointFolder(journal.folder, recipe.checkpoint.keep) if journal.folder else None,
            about=about(recipe, plan, data.class_names),
            update=state.update or None,
            best=(state.best_top1, state.best_update),
        ),
        stop=StopRequest().listen(),
    )


def graph_facts(recipe: Recipe, plan: Plan, state: State) -> dict[str, Any]:
    """What a training run's compiled graphs and their order follow from."""
    everything = recipe.to_dict()
    facts = {section: everything[section] for section in ("model", "optimizer", "ema", "batch", "evaluate")}
    facts |= {key: everything["run"][key] for key in ("ops", "precision", "seed", "sync_batch_norm")}
    facts |= {"classes": plan.classes, "per_device": plan.per_device, "accumulation": plan.accumulation}
    return facts | {"trains": state.update < plan.total_steps}


def about(recipe: Recipe, plan: Plan, class_names: tuple[str, ...]) -> dict[str, Any]:
    """What a checkpoint says of itself, besides its counters."""
    return {
        "model": model_of(recipe),
        "recipe": recipe.to_dict(),
        "class_names": list(class_names),
        "world": plan.world,
        **{key: getattr(plan, key) for key in (*POSITION, "per_device", "mix_group")},
        "versions": versions(),
    }


def write_folder(
    journal: Journal, recipe: Recipe, lines: list[tuple[str, str]], data: Splits, runtime: Runtime
) -> None:
    """The files a run folder begins with: recipe as run, plan, manifest."""
    journal.write("recipe.yaml", to_yaml(replace(recipe, run=replace(recipe.run, output=None))))  # it is there
    journal.write("plan.txt", "".join(f"{topic:<9} {text}\n" for topic, text in lines))
    counts = {"train": len(data.train), "val": len(data.val)}
    facts = manifest(runtime.device, runtime.world, counts, data.class_names)
    journal.write("manifest.json", json.dumps(facts, indent=2) + "\n")


def write_summary(journal: Journal, training: Training, score: Score) -> None:
    """summary.json: the last score and what the run cost; seconds since this process began the run."""
    chrono = training.chrono
    costs = {
        "seconds": round(journal.seconds, 1),
        "compile_seconds": round(chrono.compile_seconds, 1),
        "images_per_second": round(chrono.rate, 1),
        "data_wait_share": round(chrono.wait_share, 3),
    }
    journal.write("summary.json", json.dumps({**asdict(score), **costs}, indent=2) + "\n")
