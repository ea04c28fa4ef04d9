"""Pretrains on the digits 0 to 4, finetunes on 5 to 9 with and without those weights, and writes docs/FINETUNE.md.

python scripts/finetune_page.py [FOLDER]      FOLDER: for the seven runs (default: runs/finetune); about ten minutes
"""

import json
import shlex
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from mindcv_crossvit.report import draw_comparison, read_metrics

SEEDS = (0, 1, 2)
TRAIN = "python train.py --config configs/digits.yaml"
SHORT = "--set schedule.epochs=8 --set schedule.warmup_epochs=1 --set evaluate.every_epochs=1"
PRETRAIN = f'{TRAIN} --output {{folder}}/digits-0-4 --set \'data.classes=["0","1","2","3","4"]\''
NEW = f'{TRAIN} --output {{folder}}/{{name}}-{{seed}} --set \'data.classes=["5","6","7","8","9"]\' {SHORT}'
SCRATCH = f"{NEW} --set run.seed={{seed}}"
FINETUNE = f"{SCRATCH} --init-from {{folder}}/digits-0-4"
PAGE = """# Finetuning

## What a first run looks like

```bash
python train.py --config configs/finetune_folder.yaml --data_dir /path/to/pictures --init-from /path/to/weights.pth
```

`--init-from` takes the official `.pth` (read without PyTorch; nothing in it is run), timm's `.safetensors` or `.pth`,
MindCV's `.ckpt` (with `--set model.numerics=mindcv`: MindCV computes another GELU and another resize), a checkpoint of
this suite or a run folder. The log says what became of every tensor. Heads for other classes begin fresh; with another
picture size the position embeddings of both branches are resized. What is `auto` in the recipe follows from the
pictures, and `--dry-run` shows the numbers with their reasons. Any of them can be given instead: `--set
schedule.epochs=30`.

| to | say |
|---|---|
| keep layers as they are | `--set 'optimizer.freeze=["patch_embed.*", "blocks.0.*"]'` |
| let early layers learn more slowly | `--set optimizer.layer_decay=0.65` (1 for all alike) |
| use only some classes of a folder | `--set 'data.classes=["cat", "dog"]'` |
| hold less in memory at once | `--set batch.largest_per_device=8` (the result stays the same) |

## Shown on digits

A small CrossViT ({parameters:,} parameters) learns the handwritten digits 0 to 4 ({pretrain_images} pictures). Then it
has {epochs} epochs, {updates} updates, for the digits 5 to 9 ({images} pictures), once from those weights and once from
fresh ones, all else alike.

![Validation error over updates, finetuned and from scratch](finetune.png)

{table}

Error on {val_images} pictures of the digits 5 to 9; the last checkpoint is the result. Run on {machine}, by
`python scripts/finetune_page.py`, which writes this page from the runs. The commands, here for seed 0:

```bash
{commands}
```
"""


def run(command: str, folder: Path) -> Path:
    """Runs a training unless its folder has a finished one; returns the run folder."""
    parts = shlex.split(command)
    output = Path(parts[parts.index("--output") + 1])
    if not (output / "summary.json").exists():
        shutil.rmtree(output, ignore_errors=True)
        print(command, flush=True)
        subprocess.run([sys.executable, *parts[1:]], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return output


def table(runs: dict[str, list[Path]]) -> str:
    """Error after the last epoch and after the first two, per way of beginning and seed."""
    lines = ["| begins with | seed | error after 1 epoch | after 2 | at the end |", "|---|--:|--:|--:|--:|"]
    for name, folders in runs.items():
        errors = [[100 - m["val_top1"] for m in read_metrics(f) if "val_top1" in m] for f in folders]
        for seed, of_seed in zip(SEEDS, errors, strict=True):
            lines.append(f"| {name} | {seed} | {of_seed[0]:.2f} % | {of_seed[1]:.2f} % | {of_seed[-1]:.2f} % |")
        means = [statistics.mean(e[k] for e in errors) for k in (0, 1, -1)]
        lines.append(f"| **{name}** | mean | {means[0]:.2f} % | {means[1]:.2f} % | **{means[2]:.2f} %** |")
    return "\n".join(lines)


def main() -> int:
    """Runs what is missing and writes the page and its picture."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/finetune")
    pretrained = run(PRETRAIN.format(folder=folder), folder)
    runs: dict[str, list[Path]] = {"weights of 0 to 4": [], "fresh weights": []}
    for seed in SEEDS:
        runs["weights of 0 to 4"].append(run(FINETUNE.format(folder=folder, name="finetuned", seed=seed), folder))
        runs["fresh weights"].append(run(SCRATCH.format(folder=folder, name="scratch", seed=seed), folder))
    draw_comparison(runs, ROOT / "docs" / "finetune.png")
    first = runs["weights of 0 to 4"][0]
    manifest, last = json.loads((first / "manifest.json").read_text()), read_metrics(first)[-1]
    plan = (first / "plan.txt").read_text()
    names = {"folder": "runs", "seed": 0}
    commands = [PRETRAIN, FINETUNE.replace("{name}", "finetuned"), SCRATCH.replace("{name}", "scratch")]
    page = PAGE.format(
        parameters=int(plan.split(" parameters")[0].split()[-1].replace(",", "")),
        pretrain_images=json.loads((pretrained / "manifest.json").read_text())["data"]["train"],
        epochs=last["epoch"],
        updates=last["update"],
        images=manifest["data"]["train"],
        val_images=manifest["data"]["val"],
        machine=f"{manifest['machine']['cores']} x86 cores, MindSpore {manifest['versions']['mindspore']}",
        table=table(runs),
        commands="\n".join(command.format(**names) for command in commands),
    )
    (ROOT / "docs" / "FINETUNE.md").write_text(page, encoding="utf-8")
    print("wrote docs/FINETUNE.md and docs/finetune.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
