"""The command lines of the scripts; what a run is, is said in its recipe."""

from __future__ import annotations

import argparse
from typing import Any

from .recipe import Recipe
from .recipe_file import load_recipe


def train_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Options of train.py."""
    parser = _parser("Train or finetune a model from a recipe.")
    parser.add_argument("--output", metavar="DIR", help="run folder (default: runs/NAME)")
    parser.add_argument(
        "--resume", metavar="auto|PATH", help="go on with my own run: its newest whole checkpoint, or this one"
    )
    parser.add_argument(
        "--init-from",
        metavar="PATH",
        help="start a new run from these weights; with --resume auto only while there is no checkpoint",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop; nothing is compiled")
    parser.add_argument("--world", type=_count, metavar="N", help="of a dry run: plan for so many devices")
    arguments = parser.parse_args(argv)
    if arguments.world is not None and not (arguments.dry_run and arguments.world):
        parser.error("--world N plans for N devices, from 1, with --dry-run; msrun starts a run on several")
    if arguments.resume not in (None, "auto") and arguments.init_from:
        parser.error("--resume PATH goes on with a run, --init-from begins one: give one of them")
    return arguments


def validate_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Options of validate.py."""
    parser = _parser("Score a checkpoint: top-1, top-5 and cross-entropy over every picture once.")
    parser.add_argument("--ckpt_path", required=True, metavar="PATH", help="the checkpoint, or an exported file")
    parser.add_argument(
        "--branch", metavar="small|large", help="CrossViT: the head of this branch alone (default: the mean of both)"
    )
    _add_runtime(parser)
    return parser.parse_args(argv)


def export_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Options of scripts/export.py."""
    parser = argparse.ArgumentParser(description="Write a checkpoint as an ONNX or MindIR file.", allow_abbrev=False)
    parser.add_argument("--ckpt_path", required=True, metavar="PATH", help="the checkpoint, or a run folder")
    parser.add_argument("--output", required=True, metavar="FILE", help="NAME.onnx or NAME.mindir, a new file")
    parser.add_argument("--batch", type=int, metavar="N", help="ONNX: pictures of a call (default: 1)")
    _add_weights(parser)
    parser.add_argument(
        "--pictures", action="append", metavar="PICTURE_OR_FOLDER", help="compare on these, too; may be repeated"
    )
    parser.add_argument(
        "--check",
        type=_difference,
        default=1e-4,
        metavar="DIFFERENCE",
        help="the largest difference of a logit to the checkpoint's that is allowed (default: 1e-4)",
    )
    return parser.parse_args(argv)


def predict_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Options of predict.py."""
    parser = argparse.ArgumentParser(description="Name the classes of pictures.", allow_abbrev=False)
    parser.add_argument("pictures", nargs="+", metavar="PICTURE_OR_FOLDER", help="folders with all below them")
    parser.add_argument("--ckpt_path", required=True, metavar="PATH", help="the checkpoint, or a run folder")
    parser.add_argument("--top", type=int, metavar="K", help="classes to name for each picture (default: 5)")
    parser.add_argument("--json", action="store_true", help="a JSON object per picture and line")
    _add_weights(parser)
    _add_runtime(parser)
    parser.add_argument(
        "--attention", metavar="DIR", help="draw what the class tokens attend to, a PNG per picture in this folder"
    )
    return parser.parse_args(argv)


def check_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Options of scripts/check_env.py."""
    parser = _parser("Check a machine before a run.")
    parser.add_argument("--output", metavar="DIR", help="the run folder to be (default: runs)")
    return parser.parse_args(argv)


def supervise_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Options of scripts/supervise.py; `command` is what follows `--`."""
    parser = argparse.ArgumentParser(
        description="Run a training job and start it again when it fails.", allow_abbrev=False
    )
    parser.add_argument("--restarts", type=_count, default=3, metavar="N", help="times at most (default: 3)")
    parser.add_argument("--logs", default="logs", metavar="DIR", help="why it failed, and a folder of logs per attempt")
    for name, default, meaning in (
        ("backoff", 5, "before the first restart, doubled for each further one"),
        ("start", 300, "a rank may take to join the others"),
        ("compile", 3600, "the first update may take"),
        ("hang", 900, "any later update, save or batch of a validation may take"),
    ):
        text = f"seconds {meaning} (default: {default})"
        parser.add_argument(f"--{name}", type=_seconds, default=float(default), metavar="SECONDS", help=text)
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="python train.py ..., or msrun")
    arguments = parser.parse_args(argv)
    if arguments.command[:1] == ["--"]:
        arguments.command = arguments.command[1:]
    return arguments


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number from 0, got {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected seconds above 0, got {text!r}")
    return value


def _parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    parser.add_argument("-c", "--config", required=True, metavar="YAML", help="the recipe")
    parser.add_argument("--data_dir", metavar="DIR", help="folder of the data set")
    parser.add_argument("--distribute", type=_true_or_false, metavar="True|False", help="False: one device")
    parser.add_argument(
        "--set",
        dest="changes",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any recipe key, e.g. schedule.epochs=10",
    )
    return parser


def _add_weights(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--weights",
        choices=("model", "ema"),
        default="model",
        help="the trained weights (default) or their moving average",
    )


def _add_runtime(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--runtime", metavar="onnxruntime|openvino", help="what runs an ONNX file (default: what is there)"
    )


def _difference(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number from 0, such as 1e-4, got {text!r}")
    return value


def _true_or_false(text: str) -> bool:
    words = {"true": True, "false": False}
    if text.lower() not in words:
        raise argparse.ArgumentTypeError(f"expected True or False, got {text!r}")
    return words[text.lower()]


def recipe_of(arguments: argparse.Namespace) -> Recipe:
    """The recipe with everything the command line says on top. Raises UserError."""
    said: dict[str, Any] = {
        "data.dir": arguments.data_dir,
        "run.distribute": arguments.distribute,
        "run.output": getattr(arguments, "output", None),
    }
    return load_recipe(arguments.config, arguments.changes, {k: v for k, v in said.items() if v is not None})
