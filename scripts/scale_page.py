"""Writes docs/SCALE.md: what the plan of the paper's recipe means on 8, 64 and 1,024 cards. All of it calculated.

python scripts/scale_page.py
"""

import sys
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from mindcv_crossvit.data.sources import Splits
from mindcv_crossvit.models.catalog import macs, parameter_shapes
from mindcv_crossvit.plan import all_reduce_bytes, make_plan
from mindcv_crossvit.recipe_file import load_recipe

RECIPE = "configs/crossvit_15_ascend.yaml"
WORLDS = (8, 64, 1024)
CARDS_PER_SERVER = 8
TRAIN, VAL, CLASSES = 1_281_167, 50_000, 1000
"""ImageNet-1k, https://www.image-net.org/challenges/LSVRC/2012/."""
TRAIN_BYTES = 138e9
"""Size of its training archive, same page."""
HCCS = 7 * 28e9
"""Bytes a second from one card to the seven others of its server, each way: half of 7 links of 56 GB/s."""
NETWORK = 200e9 / 8
"""Bytes a second of a card's own network port: 200 Gbit/s."""
SUSTAINED = 50e12
"""Operations a second of a card in training: an assumption."""
DISK = 1e9
"""Bytes a second of shared storage to which one rank writes: an assumption."""

PRINTED = 67_108_864, 2_630.20e-6
"""Bytes and seconds of an all-reduce of float32 on 8 cards, the last line of the example on the page below."""
TESTER = (
    "https://www.hiascend.com/document/detail/en/CANNCommunityEdition/latest/devaids/hccltool/HCCLpertest_16_0006.html"
)

HEAD = """# At scale, on paper

What changes when `{recipe}` goes from 8 to 64 and 1,024 cards. **Nothing here was
measured**: this page is calculated from the plan's own arithmetic by `python scripts/scale_page.py`, and a test
compares it with that. The plan itself, for any number of cards and without any:

```bash
python train.py --config {recipe} --data_dir /path/to/imagenet --dry-run --world 1024
```

{parameters:,} parameters, {macs:.2f} G multiply-accumulates a picture, ImageNet's {train:,} training pictures.

"""

TAIL = """
## What was put in

- Between the cards of a server: full mesh, seven links of 56 GB/s, counted half in each direction. The figure is from
  [a participant's report of a contest](https://www.meemx.com/p/hccl-contest-log-overall) on an 8-card 910B server,
  who calls it unofficial. The rows below the all-reduce follow from it.
- The maker's own figure is what [the documentation of HCCL's tester]({tester})
  prints as an example: `all_reduce_test` on 8 cards, float32, {printed} MiB in {micro:,.0f} us; its 23.8 GB/s count
  2^30 bytes, {bandwidth:.1f} GB/s of 10^9. On which cards it does not say; from 1 to 32 MiB the time hardly changes, so
  that part of it is start-up. It makes the second all-reduce row, for one server. The tester measures yours.
- Between servers: 200 Gbit/s for each card, an assumption; a slower network makes the time longer in proportion.
- All-reduce times are the bytes over that bandwidth. Start-up times of the {steps} steps of a ring are not in them: at
  1,024 cards they may be larger than the rest, and HCCL chooses other algorithms there.
- Computing: three times the forward pass, two operations per multiply-accumulate, {sustained:.0f} T operations a second
  sustained by a card. An assumption: measure one card, and scale the rows that depend on it.
- Storage: 138 GB for ImageNet's training archive (https://www.image-net.org/challenges/LSVRC/2012/), each picture read
  once an epoch; checkpoints at 1 GB/s from rank 0, an assumption. They hold weights, two moments and a moving average
  where there is one; all cards wait meanwhile.

## What follows

- **The recipe stays the paper's on all of them.** Up to {whole} cards, a card holds at least one mixing group of
  {group} pictures of the global batch of {batch}; beyond, it holds pairs of one, and mixes them with the draw of the
  whole group. Pixels, targets and drop path are the same on any number of cards that gives each an even number of
  pictures, up to {most}.
- **At 1,024 cards a card holds {last} pictures**, which uses it badly. Larger shares need a larger global batch: at 128
  pictures a card {large:,}, {few} updates an epoch. No result of CrossViT beyond 4,096 is published that we know of.
- **The learning rate** follows `optimizer.lr_scaling`; the linear rule would ask for {lr:g} there. That it holds so far
  is not known: a larger batch is an experiment, not a setting.
- **Input** is the first thing to give way: the rate in the table has to be decoded and augmented by each server's cores
  and read from storage. `scripts/check_env.py` measures yours.
"""


def facts() -> dict[str, Any]:
    """Recipe, parameters, multiply-accumulates and a plan per number of cards."""
    recipe = load_recipe(ROOT / RECIPE, [], {"data.dir": "/path/to/imagenet"})
    config = recipe.model.config()
    assert config
    names = tuple(str(k) for k in range(CLASSES))
    data = Splits(range(TRAIN), range(VAL), names)  # type: ignore[arg-type]
    return {
        "recipe": recipe,
        "parameters": sum(prod(shape) for shape in parameter_shapes(config, CLASSES).values()),
        "macs": macs(config, CLASSES),
        "plans": [make_plan(recipe, data, world) for world in WORLDS],
    }


def rows(known: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """(meaning, a value per number of cards)."""
    count, plans = known["parameters"], known["plans"]
    parts = 3 + bool(known["recipe"].ema.decay)
    work = [6 * known["macs"] * p.global_batch / p.world for p in plans]
    sent = [all_reduce_bytes(count, p.world) for p in plans]
    wires = [HCCS if p.world <= CARDS_PER_SERVER else NETWORK for p in plans]
    moving = [s / w for s, w in zip(sent, wires, strict=True)]
    update = [w / SUSTAINED + m for w, m in zip(work, moving, strict=True)]
    rate = [p.global_batch / u for p, u in zip(plans, update, strict=True)]
    servers = [max(p.world // CARDS_PER_SERVER, 1) for p in plans]
    stored = 4 * parts * count
    hours = [u * p.total_steps / 3600 for u, p in zip(update, plans, strict=True)]
    return [
        ("pictures a card holds x accumulation", [f"{p.per_device} x {p.accumulation}" for p in plans]),
        ("pictures of a mixing draw", [f"{p.mix_group}" for p in plans]),
        ("updates, an epoch and in all", [f"{p.steps_per_epoch} and {p.total_steps:,}" for p in plans]),
        ("MB sent by each card per update", [f"{s / 1e6:.1f}" for s in sent]),
        ("all-reduce, ms, bandwidth only", [f"{1e3 * m:.1f}" for m in moving]),
        ("all-reduce, ms, by HCCL's printed example", [f"{1e3 * 4 * count / (PRINTED[0] / PRINTED[1]):.1f}", "", ""]),
        ("computing, ms per update", [f"{1e3 * w / SUSTAINED:.0f}" for w in work]),
        ("share of the all-reduce, not overlapped", [f"{m / u:.1%}" for m, u in zip(moving, update, strict=True)]),
        ("pictures a second, all cards", [f"{r:,.0f}" for r in rate]),
        ("pictures a second and server", [f"{r / s:,.0f}" for r, s in zip(rate, servers, strict=True)]),
        ("read from storage, GB/s", [f"{r * TRAIN_BYTES / TRAIN / 1e9:.2f}" for r in rate]),
        ("checkpoint, MB", [f"{stored / 1e6:,.0f}"] * len(plans)),
        ("writing it, updates lost", [f"{stored / DISK / u:.1f}" for u in update]),
        ("the whole run, hours, without validation", [f"{h:.1f}" for h in hours]),
    ]


def table(body: Sequence[tuple[str, list[str]]]) -> str:
    """Rows as Markdown."""
    head = "| calculated | " + " | ".join(f"{w:,} cards" for w in WORLDS) + " |\n|---|" + "--:|" * len(WORLDS) + "\n"
    return head + "".join(f"| {name} | {' | '.join(values)} |\n" for name, values in body)


def page() -> str:
    """The whole page as Markdown."""
    known = facts()
    last, o = known["plans"][-1], known["recipe"].optimizer
    large = 128 * last.world
    head = HEAD.format(recipe=RECIPE, parameters=known["parameters"], macs=known["macs"] / 1e9, train=TRAIN)
    return (
        head
        + table(rows(known))
        + TAIL.format(
            tester=TESTER,
            printed=PRINTED[0] >> 20,
            micro=1e6 * PRINTED[1],
            bandwidth=PRINTED[0] / PRINTED[1] / 1e9,
            steps=f"{2 * (last.world - 1):,}",
            sustained=SUSTAINED / 1e12,
            batch=f"{last.global_batch:,}",
            whole=last.global_batch // known["recipe"].mix.group,
            group=known["recipe"].mix.group,
            most=f"{last.global_batch // 2:,}",
            last=last.per_device,
            large=large,
            few=TRAIN // large,
            lr=o.lr * large / o.lr_batch,
        )
    )


if __name__ == "__main__":
    target = ROOT / "docs" / "SCALE.md"
    target.write_text(page(), encoding="utf-8")
    print(f"wrote {target.relative_to(ROOT)}")
