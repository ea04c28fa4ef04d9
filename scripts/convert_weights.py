"""Converts weights of PyTorch, timm, MindCV or this suite; what kind they are is found by looking inside.

python scripts/convert_weights.py SRC DST [--to official|timm|suite] [--part model|ema] [--class-names PATH]

official, timm: a .safetensors file with the official or timm's names. suite: a checkpoint that validate.py takes; the
model is found by its shapes. --class-names: a text file with a name per line, or a folder with a folder per class.
Without --to, official names. Nothing in SRC is run; ends with code 2 when it cannot be read or converted.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np

from mindcv_crossvit.errors import UserError, run_main
from mindcv_crossvit.files import replacing
from mindcv_crossvit.journal import versions
from mindcv_crossvit.training.checkpoint import SUFFIX, write_checkpoint
from mindcv_crossvit.weights.names import MINDCV, OFFICIAL, OTHER, SUITE, TIMM, family, other_family, to_timm
from mindcv_crossvit.weights.read import PARTS, Weights, read_weights
from mindcv_crossvit.weights.variant import as_checkpoint, find_variant

NOT_IN_TIMM = {"crossformer": "CrossFormer", "cabvit": "CabViT"}


def main(argv: list[str] | None = None) -> int:
    """Reads, converts, writes and says so."""
    arguments = parse(argv)
    target = Path(arguments.target)
    weights = read_weights(arguments.source, arguments.part)
    tell("weights", f"{weights.path}: {weights.kind}, {weights.numerics or 'unknown'} numerics")
    for note in weights.notes:
        tell("note", note)
    check_target(target)
    try:
        if arguments.to == SUITE:
            to_suite(weights, target, arguments)
        else:
            to_pytorch(weights, target, arguments.to)
    except OSError as error:
        raise UserError(f"{target}: could not be written: {error}") from error
    tell("written", f"{target}: {len(weights.tensors)} tensors, {arguments.to}")
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Convert weights between PyTorch, timm, MindCV and this suite.")
    parser.add_argument("source", metavar="SRC", help="any weights file this suite reads")
    parser.add_argument("target", metavar="DST", help=f"the new file, NAME{SUFFIX}")
    parser.add_argument("--to", choices=(OFFICIAL, TIMM, SUITE), default=OFFICIAL, help="official when not said")
    parser.add_argument("--part", choices=tuple(PARTS), default="model", help="raw weights or their moving average")
    parser.add_argument("--class-names", metavar="PATH", help="the classes of a checkpoint of the suite, in order")
    arguments = parser.parse_args(argv)
    if arguments.class_names and arguments.to != SUITE:
        parser.error("--class-names is only for --to suite")
    return arguments


def tell(topic: str, text: str) -> None:
    """A line of the report."""
    print(f"{topic:<9} {text}")


def check_target(target: Path) -> None:
    """Raises UserError when the new file would be misnamed or in the place of another."""
    if target.suffix != SUFFIX:
        raise UserError(f"{target}: a safetensors file is written; name it {target.with_suffix(SUFFIX)}")
    if target.exists():
        raise UserError(f"{target}: exists; name a new file")


def to_pytorch(weights: Weights, target: Path, names: str) -> None:
    """Official or timm's names. Raises UserError for weights that would give other numbers there."""
    if weights.numerics == MINDCV:
        raise UserError(
            f"{weights.path}: weights for MindCV's numerics would give other logits in PyTorch, whose CrossViTs resize,"
            " normalise and activate otherwise; --to suite keeps their numerics"
        )
    if family(weights.tensors) == OTHER:
        raise UserError(f"{weights.path}: not the weights of a CrossViT, CrossFormer, CabViT-H or DeiT, by their names")
    if names == TIMM and (other := other_family(weights.tensors)) in NOT_IN_TIMM:
        raise UserError(f"{weights.path}: timm has no {NOT_IN_TIMM[other]}; --to official keeps its authors' names")
    save({to_timm(n) if names == TIMM else n: t for n, t in weights.tensors.items()}, target)


def save(tensors: dict[str, np.ndarray], target: Path) -> None:
    """Writes under a fresh name and renames. Raises OSError."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    try:
        with replacing(target) as fresh:
            save_file({n: np.ascontiguousarray(t) for n, t in tensors.items()}, fresh, {"format": "pt"})
    except SafetensorError as error:
        raise OSError(error) from error


def to_suite(weights: Weights, target: Path, arguments: argparse.Namespace) -> None:
    """A checkpoint of the suite that says which model and classes it is for."""
    variant = find_variant(weights)
    names = (weights.meta or {}).get("class_names")
    if arguments.class_names:
        names = class_names(Path(arguments.class_names))
    if names is None:
        raise UserError(
            "--class-names: a checkpoint knows its classes and these weights do not; name a text file with a class per"
            " line, or a folder with a folder per class"
        )
    if len(names) != variant.num_classes:
        raise UserError(f"--class-names: {len(names)} classes, the weights are for {variant.num_classes}")
    changes = [f"{k}={v}" for k, v in variant.overrides.items()]
    tell("model", ", ".join([variant.name, f"{variant.num_classes} classes", *changes]))
    checkpoint = as_checkpoint(weights, names)
    write_checkpoint(target, checkpoint.tensors, {**checkpoint.meta, "versions": versions()})


def class_names(path: Path) -> list[str]:
    """The lines of a file, or the subfolders of a folder, sorted as the data reads them."""
    if path.is_dir():
        return sorted(p.name for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--class-names: {path} cannot be read: {error}") from error


if __name__ == "__main__":
    run_main(main)
