"""Score a checkpoint, weights of PyTorch or MindCV, or an exported file on a recipe's validation pictures.

    python validate.py -c configs/crossvit_15_ascend.yaml --data_dir /path/to/imagenet --ckpt_path /path/to/ckpt

Every picture counts once, on any number of devices. The last line is JSON: {"top1": .., "top5": .., "loss": ..,
"images": .., "checkpoint": .., "model": ..}, in percent; "ema_top1", "ema_top5" and "ema_loss" besides where the
checkpoint has a moving average, and "branch" where the head of one branch alone is scored (--branch small).
"""

import json
from pathlib import Path

from mindcv_crossvit import cli, runtime
from mindcv_crossvit.adapt import adapt
from mindcv_crossvit.data.sources import open_data
from mindcv_crossvit.errors import run_main
from mindcv_crossvit.export.run import check_branch, every_logits, read_trained
from mindcv_crossvit.training.start import check_fits


def main() -> int:
    arguments = cli.validate_arguments()
    recipe = cli.recipe_of(arguments)
    runtime.planned_world(recipe.run.distribute)
    if runtime.is_scheduler():
        runtime.start(recipe.run.device)
    data = open_data(recipe.data)
    trained = read_trained(Path(arguments.ckpt_path), arguments.runtime, data.class_names, recipe.model.name)
    recipe, _ = adapt(recipe, data, pretrained=True, begun=trained.meta.get("recipe") or trained.meta)
    check_fits(trained, recipe, data.class_names)
    check_branch(trained, recipe, arguments.branch)

    from mindcv_crossvit import build
    from mindcv_crossvit.evaluation import evaluate
    from mindcv_crossvit.report import score_facts, score_table

    process = runtime.start(recipe.run.device)
    scores = {}
    with build.build_loader(recipe, {"val": build.eval_view(recipe, data)}) as loader:
        for part, logits in every_logits(trained, recipe, arguments.runtime, arguments.branch):
            scores[part] = evaluate(logits, loader, data.val.labels, recipe.evaluate.batch, process)
    if process.is_main:
        print(score_table(scores, trained, arguments.branch))
        print(json.dumps(score_facts(scores, trained, arguments.branch)))
    return 0


if __name__ == "__main__":
    run_main(main)
