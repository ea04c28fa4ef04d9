"""Name the classes of pictures with a trained model; no recipe is needed, the checkpoint knows.

    python predict.py --ckpt_path /path/to/ckpt picture.jpg
    python predict.py --ckpt_path /path/to/ckpt /path/to/pictures --top 3 --json
    python predict.py --ckpt_path /path/to/ckpt picture.jpg --attention drawings

A folder is searched with everything below it. Pictures that cannot be read are named on stderr; the others are
answered, and the exit code is 5.
"""

import json
import sys
from itertools import chain
from pathlib import Path

from mindcv_crossvit import cli, runtime
from mindcv_crossvit.attention_picture import draw, targets
from mindcv_crossvit.data.pictures import PictureReader, find_pictures
from mindcv_crossvit.errors import UNREADABLE, run_main
from mindcv_crossvit.export.run import needs_mindspore, open_predictor, read_trained, trained_preprocessing
from mindcv_crossvit.inference import CheckpointPredictor, check_request, padded, top_classes
from mindcv_crossvit.journal import check_writable
from mindcv_crossvit.report import answer_facts, answer_table

BATCH, ATTENTION_BATCH = 32, 8  # attention over 1157 tokens takes 0.1 GB a picture


def main() -> int:
    # What the user said, checked before MindSpore is imported.
    arguments = cli.predict_arguments()
    trained = read_trained(Path(arguments.ckpt_path), arguments.runtime)
    top = check_request(trained, arguments.top, arguments.weights, bool(arguments.attention))
    paths = find_pictures(arguments.pictures)
    drawings = {}
    if arguments.attention:
        check_writable(Path(arguments.attention), "--attention")
        drawings = targets(Path(arguments.attention), paths)
    reader = PictureReader(paths, trained_preprocessing(trained).transform(), lambda text: print(text, file=sys.stderr))
    size = min(len(paths), ATTENTION_BATCH if drawings else BATCH)
    batches = reader.batches(size)
    first = next(batches)

    # The model, and an answer for every picture.
    if needs_mindspore(trained):
        runtime.start("auto")
    predictor = open_predictor(trained, arguments.weights, arguments.runtime)
    for pictures in chain([first], batches):
        images = padded([picture.pixels for picture in pictures], size)
        if drawings and isinstance(predictor, CheckpointPredictor):
            logits, panels = predictor.with_attention(images)
        else:
            logits, panels = predictor.logits(images), []
        for row, picture in enumerate(pictures):
            drawing = drawings.get(picture.path)
            if drawing:
                draw(drawing, picture.square, panels[row])
            answers = top_classes(logits[row], predictor.class_names, top)
            facts = answer_facts(picture.path, answers, drawing)
            print(json.dumps(facts) if arguments.json else answer_table(facts), flush=True)
    return UNREADABLE if reader.unreadable else 0


if __name__ == "__main__":
    run_main(main)
