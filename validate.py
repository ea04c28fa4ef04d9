"""Score a checkpoint on the validation pictures of a recipe: every picture once, on any number of devices.

    python validate.py -c configs/crossvit_15_ascend.yaml --data_dir /path/to/imagenet --ckpt_path /path/to/ckpt

The last line is JSON: {"top1": .., "top5": .., "loss": .., "images": .., "checkpoint": .., "model": ..}, in percent;
"ema_top1", "ema_top5" and "ema_loss" besides where the checkpoint has a moving average.
"""

import json
from pathlib import Path

from mindcv_crossvit import cli, runtime
from mindcv_crossvit.data.sources import open_data
from mindcv_crossvit.errors import run_main
from mindcv_crossvit.training.checkpoint import read_checkpoint
from mindcv_crossvit.training.start import check_fits, resolve


def main() -> int:
    arguments = cli.validate_arguments()
    recipe = cli.recipe_of(arguments)
    runtime.planned_world(recipe.run.distribute)
    if runtime.is_scheduler():
        runtime.start(recipe.run.device)
    data = open_data(recipe.data)
    checkpoint = read_checkpoint(resolve(Path(arguments.ckpt_path)))
    check_fits(checkpoint, recipe, data.class_names)

    from mindcv_crossvit import build
    from mindcv_crossvit.evaluation import evaluate
    from mindcv_crossvit.report import score_facts, score_table
    from mindcv_crossvit.training.state import load_model

    process = runtime.start(recipe.run.device)
    model = build.build_model(recipe, len(data.class_names))
    scores = {}
    with build.build_loader(recipe, {"val": build.eval_view(recipe, data)}) as loader:
        for part in ("model", "ema") if checkpoint.part("ema") else ("model",):
            load_model(model, checkpoint, part)
            scores[part] = evaluate(model, loader, data.val.labels, recipe.evaluate.batch, process)
    if process.is_main:
        print(score_table(scores, checkpoint))
        print(json.dumps(score_facts(scores, checkpoint)))
    return 0


if __name__ == "__main__":
    run_main(main)
