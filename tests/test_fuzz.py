"""Recipes nobody would write: each is planned, or answered in lines that name a key; never a traceback."""

from __future__ import annotations

import io
import math
import re
import sys
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import yaml
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from running import TINY

import train
from mindcv_crossvit.adapt import adapt
from mindcv_crossvit.data.draws import Purpose, stream
from mindcv_crossvit.data.mixing import mix_groups
from mindcv_crossvit.data.sources import open_data
from mindcv_crossvit.data.transforms import EvalTransform, Normalise, TrainTransform
from mindcv_crossvit.errors import UserError
from mindcv_crossvit.journal import choose_folder
from mindcv_crossvit.models.catalog import macs, parameter_shapes
from mindcv_crossvit.models.memory import Load, training_memory
from mindcv_crossvit.plan import make_plan, plan_lines
from mindcv_crossvit.recipe import Data, Recipe
from mindcv_crossvit.recipe_file import flat, load_recipe, parse_recipe, read_yaml, to_yaml
from mindcv_crossvit.settings import settings_of
from mindcv_crossvit.training.schedule import lr_at

# Quick: the same examples every time. Slow: thousands of others, different ones each time.
bounded = settings(max_examples=100, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
long = settings(max_examples=3000, deadline=None, suppress_health_check=list(HealthCheck), database=None)

DIGITS = open_data(Data(source="digits"))
BASES = [read_yaml(path) for path in [*sorted((ROOT / "configs").glob("*.yaml")), ROOT / "tests" / "tiny.yaml"]]
KNOWN = {"augment.affine.degrees": 5.0, "augment.affine.scale": [0.9, 1.1], "augment.affine.shift": 0.1}
for base in BASES:
    KNOWN |= {key: value for key, value in flat(parse_recipe(base, []).to_dict()).items() if value is not None}  # type: ignore[union-attr]
KEYS = sorted(KNOWN)
SECTIONS = sorted(f.name for f in settings_of(Recipe))

ODD = ["${oc.env:HOME}", "${", "~nobody_at_all/x", "../../x", "/", "/dev/null/x", "\0", "a" * 300, "é", "auto", "."]
ODD += ["on", "1e-3", "0x10", "1_000", "2001-01-01", "!!python/object:os.system", "&a *a", "crossvit_18", "mindcv/"]
texts = st.one_of(st.text(max_size=12), st.sampled_from(ODD))
large = st.sampled_from([10**30, 10**400, 2**31, 2**63, -1, 0, 1e308, 5e-324, float("nan"), float("inf")])
scalars = st.one_of(st.none(), st.booleans(), st.integers(-2, 300), st.integers(), st.floats(), large, texts)
values = st.recursive(
    scalars, lambda v: st.one_of(st.lists(v, max_size=4), st.dictionaries(texts, v, max_size=3)), max_leaves=6
)
structures = st.one_of(
    values,
    st.dictionaries(st.one_of(st.sampled_from(SECTIONS), texts), values, max_size=6),
    st.dictionaries(scalars, values, max_size=3),
)
soup = st.one_of(st.text(alphabet="[]{}:,-&*!|>'\"#%@`?<=~\n\t ab1.$\x07é", max_size=60), st.text(max_size=60))


def like(value: Any) -> st.SearchStrategy[Any]:
    """Values of the kind of another: what a type check lets pass."""
    if isinstance(value, bool) or value is None:
        return st.one_of(st.booleans(), st.none(), st.integers(1, 64), st.floats(0, 1), texts)
    if isinstance(value, int):
        return st.one_of(st.integers(0, 300), st.integers(0), st.just("auto"))
    if isinstance(value, float):
        return st.one_of(st.floats(0, 1), st.floats(0, allow_infinity=False), st.integers(0))
    if isinstance(value, list):
        return st.tuples(*map(like, value)).map(list) if value else st.lists(texts, max_size=3)
    words = "folder cifar10 digits none padded sgd sqrt timm epoch go_on skip O2 CPU rand-m5-n3-w0 crossvit_9_dagger"
    return st.one_of(texts, st.sampled_from(words.split()))


def change_of(key: str) -> st.SearchStrategy[tuple[str, Any]]:
    return st.tuples(st.just(key), st.one_of(like(KNOWN[key]), like(KNOWN[key]), values))


DOTTED = re.compile(rf"\b({'|'.join(SECTIONS)})\.[a-z_]+")
# How a problem begins: with a dotted key or `name`, a section that is none, an unknown key, or of what is no recipe.
NAMED = re.compile(
    rf"{DOTTED.pattern}(\.[a-z_]+)?[ :,]|name(: | is missing: )|({'|'.join(SECTIONS)}|the recipe): expected a section"
    r"|unknown key |not a readable YAML file: |expected sections with keys, got |--set "
)
changes = st.lists(st.sampled_from(KEYS).flatmap(change_of), min_size=1, max_size=3)


# Of the smallest recipe's own keys, values that are likelier to be taken.
OWN = [key for key in flat(parse_recipe(read_yaml(TINY), []).to_dict()) if key in KNOWN and key != "data.source"]  # type: ignore[union-attr]
likely = st.lists(
    st.sampled_from(OWN).flatmap(lambda key: st.tuples(st.just(key), st.one_of(st.just(KNOWN[key]), like(KNOWN[key])))),
    min_size=1,
    max_size=3,
)


def answer(path: Path, said: list[str] = []) -> list[str]:  # noqa: B006
    """The problems of a recipe file, each of which names the file or a key; none when it can be planned."""
    try:
        recipe = load_recipe(path, said)
    except UserError as error:
        for problem in error.problems:
            assert problem.startswith(f"{path}: ") and NAMED.match(problem.removeprefix(f"{path}: ")), problem
        return error.problems
    try:
        data = DIGITS if recipe.data.source == "digits" else open_data(recipe.data)
        choose_folder(recipe)
        see_pictures(recipe)
        recipe, _ = adapt(recipe, data, False)
        Path("again.yaml").write_text(to_yaml(recipe))
        assert load_recipe("again.yaml") == recipe
        for world in (1, 8):
            plan = make_plan(recipe, data, world)
            assert plan_lines(recipe, plan)
            assert plan.per_device * plan.accumulation * world == plan.global_batch == recipe.batch.global_batch
            for update in (0, plan.total_steps // 2, plan.total_steps - 1):
                assert lr_at(recipe.schedule, plan, update) >= 0
            if config := recipe.model.config():
                assert macs(config, plan.classes) > 0
                load = Load(plan.per_device, recipe.evaluate.batch, 1, 1, 1, False)
                assert training_memory(config, load, True).total > 0
    except UserError as error:
        for problem in error.problems:
            assert DOTTED.search(problem), problem
        return error.problems
    return []


def see_pictures(recipe: Recipe) -> None:
    """A digit as it is trained on, and as it is validated; at most at 32 pixels."""
    picture, normalise = DIGITS.train.read(0), Normalise(recipe.data.mean, recipe.data.std)
    size = min(recipe.model.image_size, 32)
    draw = partial(stream, recipe.run.seed)
    assert TrainTransform(size, recipe.augment, normalise)(picture, draw).shape == (3, size, size)
    assert EvalTransform(size, recipe.evaluate.crop_fraction, normalise)(picture).shape == (3, size, size)
    targets, images = np.full((2, 10), 0.1, np.float32), np.zeros((2, 3, size, size), np.float32)
    mix_groups(images, targets, recipe.mix, 2, lambda _: draw(Purpose.MIX))
    np.testing.assert_allclose(targets.sum(1), 1, rtol=1e-5)


def dumped(value: Any) -> str:
    return yaml.safe_dump(value, allow_unicode=True)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def check_structure(value):
    try:
        text = dumped(value)
    except (UnicodeError, ValueError):
        return
    Path("recipe.yaml").write_text(text, errors="surrogatepass")
    answer(Path("recipe.yaml"))


def check_soup(text):
    Path("recipe.yaml").write_bytes(text.encode(errors="surrogatepass"))
    answer(Path("recipe.yaml"))


def check_changed(base, changed):
    values = {k: dict(v) if isinstance(v, dict) else v for k, v in BASES[base].items()}
    values["data"] = {"source": "digits"}
    for key, value in changed:
        *sections, last = key.split(".")
        place = values
        for section in sections:
            if not isinstance(place.get(section), dict):
                place[section] = {}
            place = place[section]
        place[last] = value
    check_structure(values)


def check_dry_run(changed):
    """train.py from the command line to the model, its optimizer and the printed plan, of what can be planned."""
    Path("recipe.yaml").unlink(missing_ok=True)
    check_changed(BASES.index(read_yaml(TINY)), changed)
    if not Path("recipe.yaml").exists():
        return
    try:
        config = load_recipe("recipe.yaml").model.config()
    except UserError:
        config = None
    if config and sum(math.prod(shape) for shape in parameter_shapes(config).values()) > 3e6:
        return  # a minute of random numbers says nothing more
    said, before = io.StringIO(), set(Path().iterdir())
    with patch.object(sys, "argv", ["train.py", "-c", "recipe.yaml", "--dry-run"]), redirect_stdout(said):
        try:
            assert train.main() == 0
        except UserError as error:
            for problem in error.problems:
                assert DOTTED.search(problem) or NAMED.match(problem.removeprefix("recipe.yaml: ")), problem
            return
    assert re.search(r"^batch +1 device x .* pictures per update$", said.getvalue(), re.MULTILINE)
    assert set(Path().iterdir()) == before


def check_set(key, text):
    answer(ROOT / "tests" / "tiny.yaml", [f"{key}={text}"])


ANY = {
    "structure": (check_structure, [structures]),
    "text": (check_soup, [soup]),
    "values in a good recipe": (check_changed, [st.integers(0, len(BASES) - 1), changes]),
    "values in a dry run of train.py": (check_dry_run, [likely]),
    "change on the command line": (check_set, [st.one_of(st.sampled_from(KEYS), texts), st.one_of(texts, soup)]),
}


@pytest.mark.parametrize("what", ANY)
@pytest.mark.parametrize("how", [bounded, pytest.param(long, marks=pytest.mark.slow)], ids=["quick", "slow"])
def test_anything_is_planned_or_answered(what, how):
    check, strategies = ANY[what]
    if check is check_dry_run:  # a model each
        how = settings(how, max_examples=how.max_examples // 4)
    how(given(*strategies)(check))()
