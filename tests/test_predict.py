"""predict.py as a user runs it, against validate.py's score, and the pure functions behind it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from running import call, last_json, photos

from mindcv_crossvit.attention_picture import overlay, targets, upsample
from mindcv_crossvit.data.pictures import PictureReader, find_pictures
from mindcv_crossvit.data.sources import open_data
from mindcv_crossvit.data.transforms import EvalTransform, Normalise
from mindcv_crossvit.errors import UserError
from mindcv_crossvit.inference import attention_panels, check_request, padded, preprocessing_of, recipe_of, top_classes
from mindcv_crossvit.recipe import IMAGENET_MEAN, IMAGENET_STD, Data
from mindcv_crossvit.training.checkpoint import Checkpoint, read_checkpoint, write_checkpoint


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    """The digits' validation pictures as files, the label in the name, in two folders."""
    root = tmp_path_factory.mktemp("digits")
    val = open_data(Data(source="digits")).val
    for index, label in enumerate(val.labels):
        folder = root / ("b/deep" if index % 3 else "a")
        folder.mkdir(parents=True, exist_ok=True)
        val.read(index).save(folder / f"{index:03d}-{label}.png")
    return root


def answers(done: subprocess.CompletedProcess[str]) -> list[dict]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def right(lines: Iterable[dict]) -> int:
    return sum(line["classes"][0]["class"] == line["path"][-5] for line in lines)


def test_the_digits_score_as_in_validation(learned, digits):
    recipe = learned / "recipe.yaml"
    score = last_json(call("validate.py", "-c", recipe, "--ckpt_path", learned))
    assert 30 < score["top1"] < 99 and score["ema_loss"] != score["loss"]
    found = {}
    for weights, top in (("model", 5), ("ema", 10)):
        done = call("predict.py", "--ckpt_path", learned, digits, "--json", "--weights", weights, "--top", top)
        assert done.returncode == 0, done.stderr
        lines = found[weights] = answers(done)
        assert [line["path"] for line in lines] == sorted(str(p) for p in digits.rglob("*.png"))
        prefix = "" if weights == "model" else "ema_"
        assert right(lines) == round(score[f"{prefix}top1"] * 3.6) and len(lines) == 360
        five = [line["path"][-5] in {c["class"] for c in line["classes"][:5]} for line in lines]
        assert sum(five) == round(score[f"{prefix}top5"] * 3.6)
        if top == 10:  # the cross-entropy, too
            by_name = [{c["class"]: c["probability"] for c in line["classes"]} for line in lines]
            true = [of[line["path"][-5]] for of, line in zip(by_name, lines, strict=True)]
            assert -np.log(true).mean() == pytest.approx(score["ema_loss"], abs=1e-5)
            assert all(sum(of.values()) == pytest.approx(1) for of in by_name)
    assert [line["classes"][0] for line in found["model"]] != [line["classes"][0] for line in found["ema"]]


def test_unreadable_pictures_are_named_and_the_others_answered(learned, digits, tmp_path):
    good = sorted(digits.rglob("*.png"))[:2]
    (tmp_path / "torn.png").write_bytes(good[0].read_bytes()[:60])
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/no ending \xff")
    shutil.copy(good[1], odd)
    (tmp_path / "notes.txt").write_text("no picture")
    done = call("predict.py", good[0], tmp_path, odd, "--ckpt_path", learned / "last.safetensors")
    assert done.returncode == 5 and "not read: " in done.stderr and "torn.png" in done.stderr
    lines = done.stdout.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == [str(good[0]), f"{tmp_path}/no ending \\udcff"]
    assert len(lines) == 2 * (1 + 5) and " %  " in lines[1]


def test_a_model_of_mindcvs_zoo_answers(graph_mode, tmp_path):
    from mindspore import Tensor

    from mindcv_crossvit import create_model

    root = photos(tmp_path / "photos", {"red": 1, "green": 1}, size=70)
    model = create_model("mindcv/squeezenet1_1", 2).set_train(False)
    recipe = {"name": "zoo", "model": {"name": "mindcv/squeezenet1_1", "input_size": 64}}
    meta = {"model": {"name": "mindcv/squeezenet1_1"}, "class_names": ["red", "green"], "recipe": recipe, "update": 0}
    checkpoint = tmp_path / "zoo.safetensors"
    write_checkpoint(checkpoint, {f"model.{p.name}": p.asnumpy() for p in model.get_parameters()}, meta)
    found = answers(call("predict.py", root, "--ckpt_path", checkpoint, "--json"))
    transform = EvalTransform(64, 0.875, Normalise(IMAGENET_MEAN, IMAGENET_STD))
    pixels = [transform(Image.open(root / name / "0.png")) for name in ("green", "red")]
    logits = model(Tensor(np.stack(pixels))).asnumpy()
    for line, row in zip(found, logits, strict=True):
        probabilities = {c["index"]: c["probability"] for c in line["classes"]}
        assert np.log(probabilities[0] / probabilities[1]) == pytest.approx(row[0] - row[1], abs=1e-5)
    refused = call("predict.py", root, "--ckpt_path", checkpoint, "--attention", tmp_path / "out")
    assert refused.returncode == 2 and "no class tokens" in refused.stderr and not (tmp_path / "out").exists()


def without_average(path: Path, to: Path) -> Path:
    whole = read_checkpoint(path)
    write_checkpoint(to, {n: t for n, t in whole.tensors.items() if not n.startswith("ema.")}, whole.meta)
    return to


def test_wrong_input_is_refused_before_mindspore_is_imported(learned, digits, tmp_path):
    good, last = sorted(digits.rglob("*.png"))[0], learned / "last.safetensors"
    (tmp_path / "empty").mkdir()
    (tmp_path / "torn.png").write_bytes(b"torn")
    (tmp_path / "damaged.safetensors").write_bytes(last.read_bytes()[:-7])
    bare = without_average(last, tmp_path / "bare.safetensors")
    shutil.copy(good, tmp_path / "one.png")
    shutil.copy(good, tmp_path / "one.png.png")
    cases = [
        (["x.safetensors", good], "x.safetensors: no such file"),
        ([tmp_path / "damaged.safetensors", good], "damaged.safetensors: not a whole safetensors file"),
        ([last, tmp_path / "onn.png", tmp_path / "empty"], "onn.png: no such picture or folder; did you mean one.png?"),
        ([last, tmp_path / "onn.png", tmp_path / "empty"], "empty: a folder without pictures"),
        ([last, tmp_path / "torn.png"], "not one of the given pictures can be read (1 tried)"),
        ([last, good, "--top", 11], "--top 11: expected 1 to 10"),
        ([last, good, "--top", 0], "--top 0: expected 1 to 10"),
        ([bare, good, "--weights", "ema"], "has no moving average"),
        ([last, good, "--attention", good], f"--attention: {good} is a file"),
        ([last, tmp_path, "--attention", tmp_path], "one.png.png is one of the pictures"),
    ]
    env = {**os.environ, "PYTHONPROFILEIMPORTTIME": "1"}
    for arguments, expected in cases:
        done = call("predict.py", "--ckpt_path", *arguments, env=env)
        said = "\n".join(line for line in done.stderr.splitlines() if not line.startswith("import time"))
        assert done.returncode == 2 and expected in said and not done.stdout, said
        assert "Traceback" not in said and "| mindspore" not in done.stderr


def test_the_command_line_is_frozen():
    words = call("predict.py", "--help").stdout.replace(",", " ").replace("]", " ").replace("[", " ").split()
    options = {"--ckpt_path", "--top", "--json", "--weights", "--runtime", "--attention"}
    assert {w for w in words if w.startswith("--")} - {"--help"} == options


@pytest.mark.parametrize("name, changes", [("crossvit_15_dagger_384", {}), ("mindcv/resnet50", {"input_size": 96})])
def test_a_checkpoint_is_preprocessed_as_its_recipe_validates(name, changes, tmp_path):
    from mindcv_crossvit.build import eval_view
    from mindcv_crossvit.data.sources import PixelSource, Splits

    values = {
        "name": "x",
        "model": {"name": name, **changes},
        "data": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]},
        "evaluate": {"crop_fraction": 0.7},
    }
    checkpoint = Checkpoint(tmp_path / "x", {}, {"recipe": values})
    source = PixelSource(np.zeros((1, 8, 8, 3), np.uint8), np.zeros(1, np.int64))
    view = eval_view(recipe_of(checkpoint), Splits(source, source, ("a",)))
    assert preprocessing_of(checkpoint).transform() == view.transform
    size = 408 if name.startswith("crossvit") else 96
    assert view.transform == EvalTransform(size, 0.7, Normalise((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)))


def test_a_checkpoint_without_an_understood_recipe_is_refused_by_name(tmp_path):
    for meta, expected in (({}, "x: the recipe in it"), ({"recipe": {"name": "a", "modl": 1}}, "did you mean model")):
        with pytest.raises(UserError, match=expected):
            recipe_of(Checkpoint(tmp_path / "x", {}, meta))


def test_the_likeliest_come_first_and_of_equal_ones_the_lower_number():
    found = top_classes(np.array([1, 3, 1, 3, 2], np.float32), tuple("abcde"), 4)
    assert [(a.name, a.index) for a in found] == [("b", 1), ("d", 3), ("e", 4), ("a", 0)]
    whole = 2 * np.e**3 + np.e**2 + 2 * np.e
    np.testing.assert_allclose([a.probability for a in found], np.exp([3, 3, 2, 1]) / whole)
    assert top_classes(np.array([1e4, -1e4], np.float32), ("a", "b"), 2)[1].probability == 0
    with pytest.raises(UserError, match="not finite"):
        top_classes(np.array([1, np.nan], np.float32), ("a", "b"), 1)


def test_a_few_classes_are_all_named():
    meta = {"class_names": ["a", "b", "c"], "model": {"name": "crossvit_9"}}
    assert check_request(Checkpoint(Path("x"), {}, meta), None, "model", attention=True) == 3
    with pytest.raises(UserError) as caught:
        check_request(Checkpoint(Path("x"), {}, meta), 4, "ema", attention=True)
    assert len(caught.value.problems) == 2


def test_pictures_are_found_once_and_sorted(tmp_path):
    for name in ("b/2.JPG", "b/10.png", "a/x.webp", "a/.hidden.png", "a/text.txt", "c.gif"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    folder = [tmp_path / name for name in ("a/x.webp", "b/10.png", "b/2.JPG", "c.gif")]
    assert find_pictures([str(tmp_path)]) == folder
    named = [str(tmp_path / "a" / "text.txt"), str(tmp_path / "b"), str(tmp_path)]
    assert find_pictures(named) == [tmp_path / "a/text.txt", *folder[1:3], folder[0], folder[3]]


def test_the_reader_fills_batches_with_what_it_can_read(tmp_path):
    for index in range(7):
        Image.new("RGB", (20 + index, 12), (40 * index, 0, 0)).save(tmp_path / f"{index}.png")
    (tmp_path / "2.png").write_bytes(b"torn")
    (tmp_path / "6.png").unlink()
    transform, said = EvalTransform(8, 0.8, Normalise((0.0,) * 3, (1.0,) * 3)), []
    reader = PictureReader([tmp_path / f"{index}.png" for index in range(7)], transform, said.append)
    batches = list(reader.batches(3))
    assert [[p.path.stem for p in batch] for batch in batches] == [["0", "1", "3"], ["4", "5"]]
    assert reader.unreadable == 2 and "2.png" in said[0] and "6.png" in said[1]
    for picture in batches[0]:
        np.testing.assert_array_equal(picture.pixels, transform(Image.open(picture.path)))
        assert picture.square.size == (8, 8)
    images = padded([p.pixels for p in batches[1]], 3)
    assert images.shape == (3, 3, 8, 8) and images.dtype == np.float32 and not images[2].any()
    np.testing.assert_array_equal(images[1], batches[1][1].pixels)


def test_maps_are_upsampled_as_pytorch_does():
    # torch.nn.functional.interpolate(mode="bilinear"), 2.13
    small = np.array([[4, 0, 1], [0, 2, 0], [3, 0, 8]])
    expected = [
        [4, 3, 1, 0.25, 0.75, 1],
        [3, 2.375, 1.125, 0.5625, 0.6875, 0.75],
    ]
    np.testing.assert_allclose(upsample(small, 6)[:2], expected, atol=1e-6)


def test_the_overlay_is_bright_where_the_weights_are():
    weights = np.array([[0, 0], [0, 1.0]])
    flat = Image.new("RGB", (8, 8), (90, 20, 70))
    bright = overlay(flat, weights).astype(int).sum(-1)
    assert bright.shape == (224, 224) and bright[0, 0] == bright.min() < bright[-1, -1] / 3
    assert bright[-1, -1] == bright.max()
    np.testing.assert_array_equal(overlay(flat, weights), overlay(flat, weights / 1024))
    lines = Image.fromarray(np.indices((8, 8)).sum(0).astype(np.uint8) % 2 * 255).convert("RGB")
    assert np.ptp(overlay(lines, weights)[:56, :56]) > 50  # the picture shows through
    assert overlay(flat.resize((240, 240)), np.zeros((2, 2))).shape == (240, 240, 3)


def test_panels_are_the_patches_of_both_branches():
    from mindcv_crossvit.models.attention_maps import AttentionMaps

    def spike(count: int, *places: int) -> np.ndarray:
        """[1, heads, count]: a head for each place, attending to it alone."""
        return np.eye(count, dtype=np.float32)[list(places)][None]

    cross = (spike(5, 2, 4), spike(10, 9, 9))  # the small branch has 3 x 3 patches and reads 2 x 2
    blocks = ((np.full((1, 2, 10, 10), 0.1, np.float32),), (np.broadcast_to(spike(5, 3)[:, :, None], (1, 1, 5, 5)),))
    small, large, rolled_small, rolled_large = attention_panels(AttentionMaps(np.zeros((1, 7)), blocks, cross))[0]
    np.testing.assert_allclose(small.weights, [[0, 0.5], [0, 0.5]])
    np.testing.assert_allclose(large.weights, [[0, 0, 0], [0, 0, 0], [0, 0, 1]])
    np.testing.assert_allclose(rolled_small.weights, np.full((3, 3), 0.05))
    np.testing.assert_allclose(rolled_large.weights, [[0, 0], [0.5, 0]])
    assert "small branch" in small.title and "large branch" in rolled_large.title and "rollout" in rolled_large.title


def test_attention_is_drawn_and_the_answers_stay(learned, digits, tmp_path):
    some = sorted(digits.rglob("*.png"))[::40]
    drawn = answers(
        call("predict.py", *some, "--ckpt_path", learned, "--json", "--attention", tmp_path / "new" / "out")
    )
    plain = answers(call("predict.py", *some, "--ckpt_path", learned, "--json"))
    assert len(drawn) == len(plain) == 9
    for path, one, two in zip(some, drawn, plain, strict=True):
        for a, b in zip(one["classes"], two["classes"], strict=True):
            assert a["class"] == b["class"] and a["probability"] == pytest.approx(b["probability"], abs=1e-5)
        assert one["attention"] == str(tmp_path / "new" / "out" / f"{path.relative_to(digits)}.png")
        assert "attention" not in two
        width, height = Image.open(one["attention"]).size
        assert 3 * height < width < 5 * height
    files = [Path(line["attention"]).read_bytes() for line in drawn]
    assert len(set(files)) == 9


def test_drawings_have_names_of_their_own(tmp_path):
    paths = [tmp_path / name for name in ("a/1.png", "a/1.jpg", "b/1.png")]
    found = targets(Path("out"), paths)
    assert [found[p] for p in paths] == [Path("out/a/1.png.png"), Path("out/a/1.jpg.png"), Path("out/b/1.png.png")]
    assert targets(Path("out"), paths[2:])[paths[2]] == Path("out/1.png.png")
