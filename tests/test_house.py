"""House rules as tests: imports run one way, files stay short, documented commands exist."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT
from running import cannot

from mindcv_crossvit import cli
from mindcv_crossvit.job import read_job
from mindcv_crossvit.recipe_file import load_recipe

PACKAGE = ROOT / "mindcv_crossvit"
FILES = sorted(PACKAGE.rglob("*.py"))
# From the first to the last: a file may import from its own room and from those before it.
ROOMS = [
    "presence",
    "process",
    "errors",
    "compile",
    "files",
    "versions",
    "peers",
    "job",
    "verdict",
    "supervisor",
    "settings",
    "models.catalog",
    "model_settings",
    "recipe",
    "recipe_file",
    "departures",
    "data",
    "adapt",
    "plan",
    "runtime",
    "ops",
    "models",
]
ROOMS += [
    "weights",
    "chrono",
    "journal",
    "evaluation",
    "training",
    "attention_picture",
    "model_plan",
    "build",
    "inference",
    "export",
    "report",
    "cli",
]
# Named before their room: they import nothing of it.
EARLY = {
    "data.pixels": "settings",
    "data.rand_augment": "settings",
    "models.cabvit_config": "settings",
    "models.checks": "settings",
    "models.counts": "settings",
    "models.crossformer_config": "settings",
    "models.crossformer_counts": "settings",
    "models.crossformer_groups": "settings",
    "models.crossvit_config": "settings",
    "models.deit_config": "settings",
    "models.family": "settings",
    "models.interpolation": "settings",
    "models.crossvit_counts": "settings",
    "models.shapes": "settings",
    "training.checkpoint": "settings",
    "mindcv_bridge": "models",
    "": "models",
}


def module_of(path: Path) -> str:
    name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    return name.removesuffix("__init__").removesuffix(".")


def room_of(module: str) -> int:
    module = EARLY.get(module, module)
    matches = [room for room in ROOMS if module == room or module.startswith(f"{room}.")]
    assert matches, f"{module} belongs to no room: add it to tests/test_house.py"
    return ROOMS.index(max(matches, key=len))


def imports_of(path: Path) -> set[str]:
    """Modules of the package that a file imports, at the top or inside functions."""
    found = set()
    base = module_of(path).split(".") if path.name != "__init__.py" else [*filter(None, module_of(path).split(".")), ""]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            start = base[: len(base) - node.level]
            module = ".".join([*start, *(node.module or "").split(".")]).strip(".")
            names = [f"{module}.{a.name}".strip(".") for a in node.names]
            known = {module_of(f) for f in FILES}
            found |= {name if name in known else module for name in names}
    return found


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_run_one_way(path):
    module = module_of(path)
    for other in imports_of(path):
        if module in ("", "ops") or other == "":  # the package's own lazy names; `choose` asks for the device
            continue
        assert room_of(other) <= room_of(module), f"{module} imports {other}"


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_only_the_runtime_touches_mindspores_context(path):
    text = path.read_text(encoding="utf-8")
    if path.name != "runtime.py":
        assert not re.search(
            r"set_context|ms.get_context|set_device|mindspore\.communication|AllGather|AllReduce", text
        )


@pytest.mark.parametrize("path", [*FILES, *ROOT.glob("*.py"), *(ROOT / "scripts").glob("*.py")], ids=lambda p: p.name)
def test_files_and_functions_stay_short(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert (node.end_lineno or 0) - node.lineno < 60, f"{path.name}: {node.name}"


def test_every_reference_file_is_described_and_every_script_that_makes_some():
    data = ROOT / "tests" / "data"
    text = (data / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w.]+\.(?:json|npz|pth|safetensors))`", text))
    assert named == {p.name for p in data.iterdir() if p.suffix not in (".py", ".md") and p.is_file()}
    assert {p.name for p in data.glob("make_*.py")} == set(re.findall(r"make_\w+\.py", text))


DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "configs").glob("*.yaml"), *ROOT.glob("*.py")]


def commands() -> list[tuple[str, str]]:
    """(document, command) of every command line that starts one of our scripts."""
    found = []
    for path in DOCUMENTS:
        text = re.sub(r"\\\n#?\s*", " ", path.read_text(encoding="utf-8"))
        for line in text.splitlines():
            match = re.search(r"((?:msrun [^`]*)?python [\w/]+\.py[^`#]*|\./scripts/\w+\.sh[^`#]*)", line)
            if match:
                found.append((path.name, match[1].strip()))
    return found


@pytest.mark.parametrize("document, command", commands(), ids=lambda v: v[:60])
def test_documented_commands_exist_and_are_understood(document, command):
    words = shlex.split(command.replace("...", ""))
    script = next(w for w in words if w.endswith((".py", ".sh")))
    assert (ROOT / script).is_file(), f"{document}: {command}"
    arguments = words[words.index(script) + 1 :]
    others: dict[str, Callable[[list[str]], object]] = {
        "predict.py": cli.predict_arguments,
        "scripts/export.py": cli.export_arguments,
    }
    others["scripts/check_env.py"] = cli.check_arguments
    others["scripts/supervise.py"] = lambda rest: read_job(cli.supervise_arguments(rest).command)
    if script.endswith("launch.sh") and arguments:
        others[script] = lambda rest: subprocess.run([ROOT / script, "--print", *rest], check=True, timeout=20)
    if script in others:
        others[script](arguments)
    if script in ("train.py", "validate.py") and arguments:
        parse = cli.train_arguments if script == "train.py" else cli.validate_arguments
        parsed = parse(arguments)
        load_recipe(ROOT / parsed.config, parsed.changes)


def test_what_cannot_be_run_is_skipped_but_not_before_a_release(monkeypatch):
    monkeypatch.delenv("CROSSVIT_RELEASE", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no right to mount"):
        cannot("no right to mount")
    [name, value] = re.findall(r"^export (\w+)=(.*)$", (ROOT / "scripts" / "release.sh").read_text(), re.MULTILINE)[0]
    monkeypatch.setenv(name, value)
    with pytest.raises(pytest.fail.Exception, match="no right to mount"):
        cannot("no right to mount")
    for path in (ROOT / "tests").glob("test_*.py"):  # rights are asked for through it
        assert not re.search(r"pytest\.skip\(.*(right|namespace|mount)", path.read_text(encoding="utf-8")), path
