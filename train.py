"""Train or finetune a model from a recipe.

One CPU or card:   python train.py --config configs/digits.yaml
Eight cards:       msrun --bind_core=True --worker_num 8 python train.py --config configs/crossvit_15_ascend.yaml \
                       --data_dir /path/to/imagenet
Only the plan:     python train.py --config configs/crossvit_15_ascend.yaml --data_dir /path/to/imagenet --dry-run
"""

from mindcv_crossvit import cli, presence, runtime
from mindcv_crossvit.adapt import adapt
from mindcv_crossvit.data.sources import open_data
from mindcv_crossvit.departures import departures
from mindcv_crossvit.errors import DIVERGED, NOT_SAVED, STOPPED, run_main
from mindcv_crossvit.journal import Journal, NotSaved, choose_folder
from mindcv_crossvit.plan import make_plan, plan_lines
from mindcv_crossvit.training.start import beginning, check_initial, check_resumed, find_checkpoint, read_initial


def main() -> int:
    # What the user said, checked before MindSpore is imported.
    arguments = cli.train_arguments()
    recipe = cli.recipe_of(arguments)
    world = arguments.world or runtime.planned_world(recipe.run.distribute)
    if runtime.is_scheduler():
        runtime.start(recipe.run.device)
    data = open_data(recipe.data)
    changed = departures(arguments.config, recipe, len(data.class_names))
    folder = choose_folder(recipe, arguments.resume)
    presence.mark(folder=str(folder))
    resumed = find_checkpoint(recipe, folder, arguments.resume)
    initial = read_initial(arguments.init_from, data.class_names) if arguments.init_from and not resumed else None
    recipe, adapted = adapt(recipe, data, initial is not None, resumed.meta["recipe"] if resumed else None)
    plan = make_plan(recipe, data, world)
    if initial:
        check_initial(initial, recipe, plan.classes)
    if resumed:
        changed += check_resumed(resumed, recipe, plan, data.class_names)
    elif arguments.resume and runtime.launched_rank() == 0:
        print(f"no checkpoint in {folder} yet: a new run begins there")

    # What follows from it.
    from mindcv_crossvit import build
    from mindcv_crossvit.model_plan import model_lines
    from mindcv_crossvit.report import draw_curves
    from mindcv_crossvit.training.loop import Stopped, fit
    from mindcv_crossvit.training.saving import NonFiniteLoss

    process = runtime.start(recipe.run.device)
    process.agree_on(beginning(recipe, data, resumed))
    journal = Journal(folder if process.is_main and not arguments.dry_run else None, speaks=process.is_main)
    state = build.new_state(recipe, plan)
    lines = [*model_lines(recipe, plan, state), *plan_lines(recipe, plan)]
    lines += [("from data", text) for text in adapted] + changed
    for topic, text in lines:
        journal.say(f"{topic:<9} {text}")
    if arguments.dry_run:
        return 0

    # The run.
    views = {"train": build.train_view(recipe, data, plan), "val": build.eval_view(recipe, data)}
    try:
        build.begin(state, recipe, plan, resumed, initial, journal)
        build.write_folder(journal, recipe, lines, data, process)
        with build.build_loader(recipe, views) as loader:
            training = build.build_training(recipe, plan, data, process, journal, state, loader)
            score = fit(training)
        if process.is_main:
            build.write_summary(journal, training, score)
            journal.say(f"curves    {draw_curves(folder)}")
    except (NonFiniteLoss, NotSaved, Stopped) as error:
        journal.say(f"stopped: {error}")
        presence.mark(cause=str(error))
        return {NonFiniteLoss: DIVERGED, NotSaved: NOT_SAVED, Stopped: STOPPED}[type(error)]
    return 0


if __name__ == "__main__":
    run_main(main)
