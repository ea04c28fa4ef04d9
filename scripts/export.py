"""Write a checkpoint as an ONNX or MindIR file that is known to give its logits, with its facts in a JSON file.

    python scripts/export.py --ckpt_path runs/digits --output digits.onnx
    python scripts/export.py --ckpt_path runs/digits --output digits.mindir --pictures /path/to/pictures

Weights of PyTorch, timm and MindCV are taken, too. ONNX has a fixed batch (--batch) and is checked by onnxruntime;
MindIR takes any batch and is checked by MindSpore. When a logit differs by more than --check, no file is left and the
exit code is 6.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from mindcv_crossvit import cli, runtime
from mindcv_crossvit.data.pictures import find_pictures
from mindcv_crossvit.errors import DIFFERS, UserError, run_main
from mindcv_crossvit.export.facts import ONNX, Exported, beside, check_target, describe, need
from mindcv_crossvit.export.make import Differs, Request, export, writer
from mindcv_crossvit.export.run import read_trained
from mindcv_crossvit.inference import CheckpointPredictor


def main() -> int:
    """Exports the checkpoint named on the command line."""
    # What the user said, checked before MindSpore is imported.
    arguments = cli.export_arguments()
    checkpoint, target = read_trained(Path(arguments.ckpt_path), None), Path(arguments.output)
    if isinstance(checkpoint, Exported):
        raise UserError(f"--ckpt_path {checkpoint.path}: is an exported file; give the checkpoint it came from")
    check_target(target, checkpoint, arguments.weights, arguments.batch)
    onnx = target.suffix.lower() == ONNX
    for package in ("onnx", "onnxruntime") if onnx else ():
        need(package)
    meta = describe(checkpoint, arguments.weights, (arguments.batch or 1) if onnx else None)
    paths = find_pictures(arguments.pictures) if arguments.pictures else []

    runtime.start("auto")
    predictor = CheckpointPredictor(checkpoint, arguments.weights, precision="O0")
    request = Request(predictor, meta, target, arguments.check, paths)
    try:
        exported = export(request, writer(target))
    except Differs as error:
        print(f"not exported: {error}", file=sys.stderr)
        return DIFFERS
    check = exported.meta["check"]
    print(f"written  {target} ({target.stat().st_size / 1e6:.1f} MB) and {beside(target).name}")
    real = f", {check['pictures']:.1e} on {check['count']} pictures" if check["count"] else ""
    print(f"check    largest difference of a logit by {check['runtime']}: {check['random']:.1e} on random input{real}")
    return 0


if __name__ == "__main__":
    run_main(main)
