"""What the plan says of a model once it is made: parameters, work, memory, traffic."""

from __future__ import annotations

from .models import catalog
from .models.memory import Load, training_memory
from .plan import Plan, all_reduce_bytes
from .recipe import Recipe
from .runtime import device_target
from .training.groups import decayed, running_statistics
from .training.state import State


def model_lines(recipe: Recipe, plan: Plan, state: State) -> list[tuple[str, str]]:
    """(topic, sentence) for each part of the plan that needs the model."""
    parameters = list(state.model.trainable_params())
    count, config = sum(p.size for p in parameters), recipe.model.config()
    size = recipe.model.image_size
    work = f", {catalog.macs(config, plan.classes) / 1e9:.3f} G multiply-accumulates" if config else ""
    decays = sum(decayed(parameters, recipe.optimizer.no_decay))
    untrained = sum(p.size for p in state.model.get_parameters()) - count
    frozen = untrained - sum(p.size for p in running_statistics(state.model))
    still = f" and {frozen:,} frozen ones" if frozen and (config or recipe.optimizer.freeze) else ""
    return [
        ("model", f"{catalog.resolve(recipe.model.name)}, {count:,} parameters{still}, {size} px{work}"),
        ("decay", f"{decays} tensors decayed by {recipe.optimizer.weight_decay:g}, {len(parameters) - decays} not"),
        ("memory", _memory(recipe, plan, state, count)),
    ] + ([("traffic", _traffic(count, plan.world))] if plan.world > 1 else [])


def _memory(recipe: Recipe, plan: Plan, state: State, trained: int) -> str:
    held, accumulates = sum(p.size for p in state.parameters()), plan.accumulation > 1
    tensors = len(list(state.model.get_parameters()))
    load = Load(plan.per_device, recipe.evaluate.batch, tensors, held, trained, accumulates)
    on_cpu = device_target() == "CPU"
    need = training_memory(recipe.model.config(), load, on_cpu)
    kinds = [
        "weights",
        "gradients",
        "moments",
        *["moving average"] * bool(state.ema),
        *["sums of gradients"] * accumulates,
    ]
    parts = [f"{need.state / 1e9:.2f} GB {', '.join(kinds)}"]
    if need.step is not None and need.evaluation is not None:
        step = f"{need.step / 1e9:.2f} GB activations of {load.pictures} pictures in a step"
        evaluation = f"{need.evaluation / 1e9:.2f} GB of {load.evaluated} in an evaluation"
        parts.append(f"the larger of {step} and {evaluation}")
    if on_cpu:
        parts.append(f"{need.program / 1e9:.2f} GB MindSpore and the compiled graphs")
    words = "" if need.step is not None else "; activations of MindCV's models are not counted"
    return f"{need.total / 1e9:.2f} GB per device: {'; '.join(parts)}{words}"


def _traffic(count: int, world: int) -> str:
    sent = all_reduce_bytes(count, world) / 1e6
    return f"{sent:,.1f} MB sent and received by each rank per update: a ring all-reduce of float32 gradients"
