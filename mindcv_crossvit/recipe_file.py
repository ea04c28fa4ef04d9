"""Reading and writing recipes: YAML files with `--set key=value` on top.

Nothing here imports MindSpore: a wrong key is answered in a tenth of a second. All problems are reported at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

from .data.rand_augment import parse_policy
from .errors import UserError, nearest
from .model_settings import CrossViTModel, Model, settings_for
from .models.catalog import parameter_shapes
from .recipe import Recipe
from .settings import fill, keys_with

NODES = 20_000
"""Values of a recipe, all aliases written out."""
PARAMETERS = 10**10


def load_recipe(path: str | Path, changes: Sequence[str] = (), options: dict[str, Any] | None = None) -> Recipe:
    """Reads a recipe file.

    changes: `key=value` texts from --set, the value in YAML.
    options: dotted keys with values from other options (--data_dir is data.dir), applied last.
    Raises UserError with every problem found, each with file, key, value and what was expected.
    """
    path = Path(path)
    problems: list[str] = []
    values = read_yaml(path)
    said = {change.partition("=")[0].strip() for change in changes} | (options or {}).keys()
    if not said & {"run", "run.output"}:
        problems.extend(_leaves(values))
    for change in changes:
        _apply_change(values, change, problems)
    for key, value in (options or {}).items():
        _assign(values, key, value, problems, key)
    recipe = parse_recipe(values, problems)
    if recipe is None or problems:
        raise UserError(f"{path}: {p}" for p in problems)
    return recipe


def _leaves(values: Mapping[str, Any]) -> list[str]:
    """A problem when the run folder of a recipe file lies elsewhere: the file may be somebody else's."""
    run = values.get("run")
    output = run.get("output") if isinstance(run, Mapping) else None
    if not isinstance(output, str) or not (output.startswith(("/", "~")) or ".." in Path(output).parts):
        return []
    return [
        f"run.output: expected a folder below the working folder, got {output!r};"
        " only the command line may name another, with --output or --set"
    ]


def parse_recipe(values: Any, problems: list[str]) -> Recipe | None:
    """A recipe from plain values; what is wrong is added to `problems`."""
    before = len(problems)
    try:
        model = settings_for(values.get("model") if isinstance(values, Mapping) else None)
    except ValueError as error:
        problems.append(f"model.name: {error}")
        model = CrossViTModel
    recipe = fill(Recipe, values, problems, {"model": model})
    if recipe is not None and len(problems) == before:
        said, keys = flat(values), [*keys_with("auto", Recipe), *keys_with("auto", model, "model")]
        recipe = replace(recipe, auto=tuple(key for key in keys if said.get(key) == "auto"))
        problems.extend(_contradictions(recipe))
    return recipe if len(problems) == before else None


def read_yaml(path: Path) -> dict[str, Any]:
    """The plain values of a YAML file, numbers like 1e-3 as numbers. Raises UserError."""
    if not path.is_file():
        raise UserError(f"{path}: no such recipe{_nearby(path)}")
    import yaml
    from omegaconf import OmegaConf

    try:
        _count(yaml.compose(path.read_text(encoding="utf-8"), yaml.SafeLoader), {})
        values = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except Exception as error:  # the YAML reader raises many kinds; all mean that the file cannot be read
        raise UserError(f"{path}: not a readable YAML file: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected sections with keys, got {type(values).__name__}")
    return {str(key): value for key, value in values.items()}


def _count(node: Any, known: dict[int, int]) -> int:
    """Values below a YAML node with all aliases written out: a few lines of them can stand for more than fit anywhere.

    Raises ValueError for more than NODES of them, or for a value that contains itself.
    """
    if id(node) in known:
        return known[id(node)]
    known[id(node)] = NODES  # of a value that contains itself
    parts = node.value if node is not None and isinstance(node.value, list) else []
    inner = [part for pair in parts for part in (pair if isinstance(pair, tuple) else (pair,))]
    known[id(node)] = total = 1 + sum(_count(part, known) for part in inner)
    if total > NODES:
        raise ValueError(f"more than {NODES:,} values, or one that contains itself")
    return total


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys of nested sections."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def _nearby(path: Path) -> str:
    folder = path.parent if path.parent.is_dir() else Path("configs")
    names = [str(p) for p in sorted(folder.glob("*.yaml"))]
    return f"; {nearest(str(path), names)}" if names else ""


def _apply_change(values: dict[str, Any], change: str, problems: list[str]) -> None:
    key, equals, text = change.partition("=")
    if not equals or not key.strip():
        problems.append(f"--set {change}: expected key=value, such as --set schedule.epochs=10")
        return
    from omegaconf import OmegaConf

    try:
        value = OmegaConf.to_container(OmegaConf.create(f"value: {text}"), resolve=False)["value"]  # type: ignore[index, call-overload]
    except Exception:  # as above: any failure means that the value is not YAML
        problems.append(f"--set {change}: the value is not readable as YAML")
        return
    _assign(values, key.strip(), value, problems, f"--set {key.strip()}")


def _assign(values: dict[str, Any], key: str, value: Any, problems: list[str], said: str) -> None:
    *sections, last = key.split(".")
    for section in sections:
        if values.get(section) is None:
            values[section] = {}
        values = values[section]
        if not isinstance(values, dict):
            problems.append(f"{said}: {section} is not a section")
            return
    values[last] = value


def _contradictions(recipe: Recipe) -> list[str]:
    """What types and ranges cannot see."""
    found = _model_contradictions(recipe.model)
    if recipe.augment.rand_augment is not None:
        try:
            parse_policy(recipe.augment.rand_augment)
        except ValueError as error:
            found.append(f"augment.rand_augment: {error}")
    for key, pair in (
        ("augment.crop_scale", recipe.augment.crop_scale),
        ("augment.crop_ratio", recipe.augment.crop_ratio),
    ):
        if pair[0] > pair[1]:
            found.append(f"{key}: expected the smaller value first, got {list(pair)}")
    affine = recipe.augment.affine
    if affine and affine.scale[0] > affine.scale[1]:
        found.append(f"augment.affine.scale: expected the smaller value first, got {list(affine.scale)}")
    left_open = {"schedule.epochs", "schedule.warmup_epochs"} & set(recipe.auto)
    if recipe.schedule.warmup_epochs > recipe.schedule.epochs and not left_open:
        found.append(
            f"schedule.warmup_epochs: expected at most schedule.epochs ({recipe.schedule.epochs}),"
            f" got {recipe.schedule.warmup_epochs:g}"
        )
    run = recipe.run
    if run.ops == "native" and run.precision != "O0":
        found.append(f"run.ops: native operators are float32 only: expected run.precision O0, got {run.precision}")
    if run.ops == "fused" and run.device == "CPU":
        found.append(
            "run.ops: fused operators are an Ascend card's: expected auto, composed, native or standard on a CPU"
        )
    name = recipe.name
    if name in ("", ".", "..") or any(c in name for c in "/\\") or not name.isprintable() or len(name.encode()) > 200:
        found.append(f"name: expected a plain name without slashes, of at most 200 bytes, got {name!r}")
    return found


def _model_contradictions(model: Model) -> list[str]:
    try:
        config = model.config()
    except ValueError as error:
        return [f"model.{error}"]  # which begins with the setting's name
    if config and (count := sum(prod(shape) for shape in parameter_shapes(config).values())) > PARAMETERS:
        sizes = ", ".join(f"model.{key}" for key in model.overrides())
        return [f"{sizes}: make {count:.1e} parameters, more than {PARAMETERS:.0e} are not planned"]
    return []


def to_yaml(recipe: Recipe) -> str:
    """A recipe file that gives this recipe again."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(recipe.to_dict()))
