"""Writes docs/RECIPES.md: every key of a recipe with its meaning, values and default, from the code that checks them.

python scripts/recipe_reference.py
"""

import sys
import typing
from dataclasses import MISSING
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from mindcv_crossvit.model_settings import SETTINGS, MindCVModel, Model
from mindcv_crossvit.recipe import Recipe
from mindcv_crossvit.settings import describe, section_type, settings_of

MODELS = (*SETTINGS.values(), MindCVModel)
HEAD = """# Recipes

A recipe is a YAML file of sections. A key that is left out has its default; `--set section.key=value` changes any key
from the command line. A misspelt key, a wrong type or a value out of range is refused before anything starts, all
problems at once. This page is written by `python scripts/recipe_reference.py`.

The keys in *italics* say where and how a run is done: another value trains the same, but for rounding. All others are
what is trained, and the plan names each that was changed.
"""


def page() -> str:
    """The whole page as Markdown."""
    return HEAD + "".join(f"\n{part}" for part in sections(Recipe, ""))


def sections(kind: type, prefix: str) -> list[str]:
    """A table for this section's own keys, then those of the sections in it."""
    types, inner = typing.get_type_hints(kind), []
    for info in settings_of(kind):
        key, section = f"{prefix}{info.name}", section_type(types[info.name])
        if section is Model:
            inner += [table(Model, "model."), *(table(kind, "model.", Model) for kind in MODELS)]
        elif section:
            inner += sections(section, f"{key}.")
    return [table(kind, prefix), *inner]


def table(kind: type, prefix: str, base: type | None = None) -> str:
    """The keys of one section that are no sections; with a base class, those that it has not."""
    types, shared = typing.get_type_hints(kind), [f.name for f in settings_of(base)] if base else []
    rows = []
    for info in settings_of(kind):
        section = section_type(types[info.name])
        if info.name not in shared and (not section or info.default is None):
            rows.append(row(f"{prefix}{info.name}", info, types[info.name], section))
    family = next((f" of the family {name}" for name, k in SETTINGS.items() if k is kind), " of MindCV" if base else "")
    head = f"## {prefix.rstrip('.') or 'Top'}{family}\n\n{(kind.__doc__ or '').strip().splitlines()[0]}\n\n"
    return head + "| key | meaning | values | default |\n|---|---|---|---|\n" + "".join(rows)


def row(key: str, info, kind, section) -> str:
    """One line of a table."""
    values = "a section, or null" if section else describe(kind, info.metadata["limits"])
    if info.metadata.get("auto"):
        values += f", or auto: {info.metadata['auto']}"
    default = "required" if info.default is MISSING else shown(info.default)
    name = f"*`{key}`*" if info.metadata.get("machine") else f"`{key}`"
    return f"| {name} | {info.metadata['doc']} | {values} | {default} |\n"


def shown(value: object) -> str:
    """A default as it stands in YAML."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return (
        str([round(v, 4) for v in value])
        if isinstance(value, tuple)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


if __name__ == "__main__":
    target = ROOT / "docs" / "RECIPES.md"
    target.write_text(page(), encoding="utf-8")
    print(f"wrote {target.relative_to(ROOT)}")
