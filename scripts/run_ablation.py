"""Trains the rows of an ablation table, several seeds each, and writes the results beside the paper's to a page.

    python scripts/run_ablation.py configs/ablation/fusion.yaml --data_dir /path/to/imagenet
    python scripts/run_ablation.py configs/ablation/fusion.yaml --base configs/digits.yaml --epochs 20 --seeds 0 1 2

Can be stopped and started again: finished runs are kept, an interrupted one goes on from its last checkpoint.
"""

import argparse
import json
import math
import shlex
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from mindcv_crossvit.departures import changed
from mindcv_crossvit.errors import UserError, run_main
from mindcv_crossvit.models.catalog import macs, parameter_shapes
from mindcv_crossvit.recipe import Recipe
from mindcv_crossvit.recipe_file import load_recipe, read_yaml
from mindcv_crossvit.report import read_metrics

BRANCHES = ("large", "small")
BRANCH_SCORES = "branches.json"
PAPER = ("top1", "top1_large", "top1_small", "params", "macs")
PAGE = """# Ablation: {table}

{about}

Written from the runs by `{command}`.

## {base_name}: {runs} runs

{budget}

{results}

Top-1 on {images:,} validation pictures after the last epoch: the mean over the seeds, and in brackets the least and the
greatest. One picture is {picture:.2f} points. Large, small: by that branch's head alone, of the same runs. Run on
{machine}.

{findings}

## Counts at the size of the paper's models

{counts}

Counted here for {own_base}, beside the paper's figures, some of which leave out the
position embeddings; [RESULTS.md](RESULTS.md) has the details.

## Commands

```bash
{commands}
```
"""


@dataclass(frozen=True)
class Row:
    """A row of a table: its settings as `key=value` texts, and the paper's figures, as printed, by name."""

    name: str
    changes: tuple[str, ...]
    paper: dict[str, str]


@dataclass(frozen=True)
class Run:
    """A row with a seed: its whole recipe, its folder and the command that trains it."""

    row: Row
    seed: int
    recipe: Recipe
    folder: Path
    words: list[str]


def arguments_of(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train an ablation table.", allow_abbrev=False)
    parser.add_argument("table", metavar="TABLE", help="a file of configs/ablation")
    parser.add_argument("--base", metavar="YAML", help="the recipe of every row (default: the table's)")
    parser.add_argument("--data_dir", metavar="DIR", help="folder of the data set")
    parser.add_argument("--epochs", type=int, metavar="N", help="of every run (default: the recipe's)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="SEED", help="a run each (default: 0)")
    parser.add_argument("--set", dest="changes", action="append", default=[], metavar="KEY=VALUE", help="in every run")
    parser.add_argument("--runs", metavar="DIR", help="folder of the runs (default: runs/TABLE-BASE)")
    parser.add_argument("--page", metavar="FILE", help="the page (default: page.md beside the runs)")
    parser.add_argument("--print", action="store_true", help="print the commands and stop")
    return parser.parse_args(argv)


def read_table(path: Path) -> tuple[dict[str, str], list[Row]]:
    """({base: recipe, about: text}, rows) of a table file. Raises UserError with everything that is wrong in it."""
    values, problems, rows = read_yaml(path), [], []
    published = {e["name"]: e for e in json.loads((ROOT / "docs" / "published.json").read_text("utf-8"))["entries"]}
    problems += [f"unknown key {key}" for key in values if key not in ("base", "about", "rows")]
    given = values.get("rows")
    if not isinstance(values.get("base"), str) or not isinstance(given, dict) or not given:
        problems.append("expected base, a recipe's path, and rows, each NAME: {published: ENTRY, set: {KEY: VALUE}}")
        given = {}
    for name, row in given.items():
        if not isinstance(row, dict) or set(row) != {"published", "set"} or not isinstance(row["set"], dict):
            problems.append(f"rows.{name}: expected {{published: ENTRY, set: {{KEY: VALUE}}}}, got {row!r}")
            continue
        entries = row["published"] if isinstance(row["published"], list) else [row["published"]]
        problems += [f"rows.{name}.published: docs/published.json has no {e}" for e in entries if e not in published]
        claims = [c for e in entries if e in published for c in published[e]["claims"] if c["source"] == "paper"]
        changes = tuple(f"{key}={json.dumps(value)}" for key, value in row["set"].items())
        rows.append(Row(str(name), changes, {c["figure"]: c["value"] for c in claims}))
    if problems:
        raise UserError(f"{path}: {problem}" for problem in problems)
    return {"base": values["base"], "about": str(values.get("about", "")).strip()}, rows


def plan_runs(arguments: argparse.Namespace, base: str, rows: list[Row]) -> list[Run]:
    """Every run, seed by seed, so that an early stop leaves whole tables. Raises UserError for impossible recipes."""
    shared = list(arguments.changes)
    shared += [f"schedule.epochs={arguments.epochs}"] if arguments.epochs is not None else []
    folder = Path(arguments.runs or f"runs/{Path(arguments.table).stem}-{Path(base).stem}")
    planned = []
    for seed in arguments.seeds:
        for row in rows:
            changes = [*row.changes, *shared, f"run.seed={seed}"]
            recipe = load_recipe(ROOT / base, changes)
            output = folder / f"{row.name}-{seed}"
            words = ["train.py", "--config", base, *(["--data_dir", arguments.data_dir] if arguments.data_dir else [])]
            words += [word for change in changes for word in ("--set", change)] + ["--output", str(output)]
            planned.append(Run(row, seed, recipe, output, words))
    return planned


def train(run: Run) -> None:
    """Trains a run from its last checkpoint, unless it is finished. Raises UserError for a folder of another recipe."""
    written = run.folder / "recipe.yaml"
    if written.exists():
        other = [change for change in changed(written, run.recipe) if change[0] not in run.recipe.auto]
        if other:
            said = [f"{key} is {new} instead of {old}" for key, old, new in other]
            raise UserError(f"{run.folder}: is of another table or budget, name other --runs: {text}" for text in said)
    if not (run.folder / "summary.json").exists():
        print(shlex.join(["python", *run.words]), flush=True)
        call([*run.words, "--resume", "auto"])


def call(words: list[str]) -> str:
    """Runs one of this repository's scripts; its output. Raises UserError when it fails."""
    done = subprocess.run([sys.executable, str(ROOT / words[0]), *words[1:]], capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{shlex.join(['python', *words])}: ended with {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout


def scores(run: Run) -> dict[str, float]:
    """Top-1 of a finished run, in percent: by both heads, and by each alone, which validate.py measures once."""
    kept = run.folder / BRANCH_SCORES
    if not kept.exists():
        words = ["validate.py", *run.words[1 : run.words.index("--output")], "--ckpt_path", str(run.folder)]
        found = {b: json.loads(call([*words, "--branch", b]).splitlines()[-1])["top1"] for b in BRANCHES}
        kept.write_text(json.dumps(found) + "\n", encoding="utf-8")
    summary = json.loads((run.folder / "summary.json").read_text(encoding="utf-8"))
    return {"both": summary["top1"], **json.loads(kept.read_text(encoding="utf-8"))}


def spread(values: list[float]) -> str:
    """Mean, and the least and the greatest of several."""
    mean = f"{statistics.mean(values):.2f}"
    return f"{mean} ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else mean


def results_table(found: dict[str, list[dict[str, float]]], rows: list[Row]) -> str:
    """Our scores beside the paper's."""
    lines = ["| | top-1, % | large | small | paper: top-1 | large | small |", "|---|--:|--:|--:|--:|--:|--:|"]
    for row in rows:
        ours = [spread([s[part] for s in found[row.name]]) for part in ("both", *BRANCHES)]
        lines.append("| " + " | ".join([row.name, *ours, *(row.paper.get(f, "") for f in PAPER[:3])]) + " |")
    return "\n".join(lines)


def counts_table(base: str, rows: list[Row]) -> str:
    """Parameters and multiply-accumulates of the table's own models beside the paper's."""
    lines = ["| | parameters | multiply-accumulates | paper: parameters, M | FLOPs, G |", "|---|--:|--:|--:|--:|"]
    for row in rows:
        config = load_recipe(ROOT / base, row.changes).model.config()
        assert config
        parameters = sum(math.prod(shape) for shape in parameter_shapes(config).values())
        ours = [f"{parameters:,}", f"{macs(config):,}", *(row.paper.get(f, "") for f in PAPER[3:])]
        lines.append("| " + " | ".join([row.name, *ours]) + " |")
    return "\n".join(lines)


def findings(found: dict[str, list[dict[str, float]]], rows: list[Row]) -> str:
    """Both orders, and which rows the seeds tell apart."""
    both = {row.name: [s["both"] for s in found[row.name]] for row in rows}
    ours = sorted(both, key=lambda name: -statistics.mean(both[name]))
    theirs = sorted((r for r in rows if "top1" in r.paper), key=lambda r: -float(r.paper["top1"]))
    lines = [f"By the mean, here: {', '.join(f'{n} {statistics.mean(both[n]):.2f}' for n in ours)}."]
    lines += [f"In the paper: {', '.join(f'{row.name} {row.paper[PAPER[0]]}' for row in theirs)}."]
    if min(map(len, both.values())) > 1:
        apart = [f"{a} above {b}" for a in ours for b in ours if min(both[a]) > max(both[b])]
        lines += [
            f"Every seed of the first lies above every seed of the second: {', '.join(apart) or 'for no two rows'}.",
            "No other two rows are told apart by these runs.",
        ]
    return "\n".join(lines)


def page(arguments: argparse.Namespace, base: str, table: dict[str, str], rows: list[Row], runs: list[Run]) -> str:
    """The page, from finished runs."""
    found: dict[str, list[dict[str, float]]] = {row.name: [] for row in rows}
    for run in runs:
        found[run.row.name].append(scores(run))
    manifest = json.loads((runs[0].folder / "manifest.json").read_text(encoding="utf-8"))
    images, recipe = manifest["data"]["val"], runs[0].recipe
    usual = load_recipe(ROOT / base).schedule.epochs
    updates = read_metrics(runs[0].folder)[-1]["update"]
    first = [run for run in runs if run.seed == runs[0].seed]
    return PAGE.format(
        table=Path(arguments.table).stem,
        about=table["about"],
        command=shlex.join(["python", "scripts/run_ablation.py", *map(str, sys.argv[1:])]),
        base_name=Path(base).stem,
        runs=len(runs),
        budget=f"Each row is `{base}` with {recipe.schedule.epochs} epochs"
        + (f" instead of {usual}" if usual != recipe.schedule.epochs else "")
        + (f", `{'`, `'.join(arguments.changes)}`" if arguments.changes else "")
        + f" and the seeds {', '.join(map(str, arguments.seeds))}:\n{manifest['data']['train']:,} training pictures,"
        f" {updates:,} updates a run.",
        results=results_table(found, rows),
        images=images,
        picture=100 / images,
        machine=f"{manifest['machine']['cores']} x86 cores, MindSpore {manifest['versions']['mindspore']}",
        findings=findings(found, rows),
        counts=counts_table(table["base"], rows),
        own_base=f"`{table['base']}`",
        commands="\n".join(shlex.join(["python", *run.words]) for run in first),
    )


def main(argv: list[str] | None = None) -> int:
    """Trains what is missing and writes the page."""
    arguments = arguments_of(argv)
    table, rows = read_table(Path(arguments.table))
    base = arguments.base or table["base"]
    runs = plan_runs(arguments, base, rows)
    if arguments.print:
        print("\n".join(shlex.join(["python", *run.words]) for run in runs))
        return 0
    for run in runs:
        train(run)
        scores(run)
    target = Path(arguments.page) if arguments.page else runs[0].folder.parent / "page.md"
    target.write_text(page(arguments, base, table, rows, runs), encoding="utf-8")
    print(f"wrote {target}")
    return 0


if __name__ == "__main__":
    run_main(main)
