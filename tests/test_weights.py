"""Weights in a model: names, fitting, resizing, the report; and the logits that come out."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import weight_files as wf
from conftest import ROOT
from reference import DATA, official_rows, reference
from test_weights_files import TINY, TINY_SHAPES, assert_same, rule_state

from mindcv_crossvit import create_model, load_weights
from mindcv_crossvit.errors import UserError
from mindcv_crossvit.models import golden
from mindcv_crossvit.models.catalog import VARIANTS as ALL
from mindcv_crossvit.models.catalog import parameter_shapes
from mindcv_crossvit.models.crossvit_config import VARIANTS
from mindcv_crossvit.weights.fit import fit, resize_positions
from mindcv_crossvit.weights.names import family, to_official, to_timm
from mindcv_crossvit.weights.read import Weights, read_weights
from mindcv_crossvit.weights.variant import Variant, find_variant

TINY_OVERRIDES = {
    n: getattr(TINY, n) for n in ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio")
}
OTHERS = ("crossformer_t", "cabvit_h_l1", "deit_tiny")
pytestmark = pytest.mark.usefixtures("graph_mode")


def tiny_weights(shapes=TINY_SHAPES, numerics="official") -> Weights:
    from pathlib import Path

    return Weights(Path("tiny.pth"), "official", numerics, rule_state(shapes))


def values(model) -> dict[str, np.ndarray]:
    return {p.name: p.asnumpy().copy() for p in model.get_parameters()}


# Shapes and names


ODD = {"depth": [[2, 1, 2], [1, 3, 0]], "qkv_bias": False, "mlp_ratio": [2.5, 3]}


@pytest.mark.parametrize("name, overrides", [*((name, {}) for name in VARIANTS), ("crossvit_tiny", ODD)], ids=str)
def test_the_shapes_are_the_models_own(name, overrides):
    model = create_model(name, 7, **overrides)
    own = {p.name: tuple(p.shape) for p in model.get_parameters()}
    assert parameter_shapes(VARIANTS[name].with_overrides(overrides), 7) == own


@pytest.mark.parametrize("name", ["crossvit_9", "crossvit_15", "crossvit_18"])
def test_mindcvs_names_are_those_of_the_same_layers(name):
    import mindcv

    model = mindcv.create_model(name)
    official = to_official(p.name for p in model.get_parameters())
    assert family(official) == "mindcv"
    shapes = parameter_shapes(VARIANTS[name])
    assert {o: tuple(p.shape) for o, p in ((official[p.name], p) for p in model.get_parameters())} == shapes
    for ours in shapes:  # the official name is a path through MindCV's layers, too
        *steps, last = ours.split(".")
        at = model
        for before, step in zip(["", *steps], steps, strict=False):
            at = at[int(step)] if step.isdigit() else getattr(at, step)
            at = at[0] if before == "fusion" else at
        found = at[int(last)] if last.isdigit() else getattr(at, {"weight": "gamma", "bias": "beta"}[last], None)
        assert official[(found if found is not None else getattr(at, last)).name] == ours


def test_timms_names_and_back():
    assert to_timm("pos_embed.1") == "pos_embed_1" and to_timm("norm.0.weight") == "norm.0.weight"
    for name in VARIANTS:
        names = list(parameter_shapes(VARIANTS[name]))
        timm = [to_timm(n) for n in names]
        assert family(names) == "official" and family(timm) == "timm"
        assert list(to_official(timm).values()) == names


def test_names_that_clash_or_are_of_another_model():
    assert family(["layer1.0.bn1.gamma"]) == "other"
    for name in OTHERS:
        names = list(parameter_shapes(ALL[name]))
        assert family(names) == "official" and to_official(names) == {n: n for n in names}
        assert family([n.replace("blocks.", "layers.") for n in names]) == "other"
    assert to_official(["bn.gamma"]) == {"bn.gamma": "bn.gamma"}
    with pytest.raises(ValueError, match="the same official name"):
        to_official(["pos_embed_0", "pos_embed.0"])


# Fitting


def test_all_or_nothing_unless_told_otherwise():
    weights = tiny_weights()
    whole = fit(weights, TINY_SHAPES)
    assert_same(whole.tensors, weights.tensors)
    assert sorted(whole.report.loaded) == sorted(TINY_SHAPES)
    lines = [topic for topic, _ in whole.report.lines()]
    assert lines == ["weights", "loaded"]

    tensors = {n: t for n, t in weights.tensors.items() if n != "norm.0.bias"} | {"extra": np.ones(3, np.float32)}
    tensors["cls_token.0"] = np.ones((1, 1, 9), np.float32)
    part = replace(weights, tensors=tensors)
    with pytest.raises(UserError) as refused:
        fit(part, TINY_SHAPES)
    assert refused.value.problems == [
        "tiny.pth: fits this model only in part: missing are 1 tensors, first norm.0.bias",
        "tiny.pth: fits this model only in part: of another shape are 1 tensors, first cls_token.0 ([1, 1, 9], the"
        " model's is [1, 1, 4])",
        "tiny.pth: fits this model only in part: left over are 1 tensors, first extra",
    ]
    report = fit(part, TINY_SHAPES, partial=True).report
    assert (report.missing, report.left_over) == (["norm.0.bias"], ["extra"])
    assert report.skipped == ["cls_token.0 ([1, 1, 9], the model's is [1, 1, 4])"]
    assert set(report.loaded) == set(TINY_SHAPES) - {"norm.0.bias", "cls_token.0"}
    assert "left over 1: extra" in str(report)


@pytest.mark.parametrize("options", [{}, {"partial": True}, {"new_head": True, "partial": True}], ids=str)
def test_a_file_of_which_nothing_fits_is_refused_in_any_case(options):
    other = replace(tiny_weights(), tensors={"conv1.weight": np.ones((3, 3), np.float32)}, numerics=None)
    with pytest.raises(UserError, match=r"nothing in it fits this model: 1 tensors, first conv1\.weight"):
        fit(other, TINY_SHAPES, **options)


def test_a_head_of_another_class_count_is_fresh_only_when_asked():
    shapes = parameter_shapes(TINY, 3)
    for options in ({}, {"partial": True}):
        with pytest.raises(UserError, match="its head does not fit: 5 classes in the file, 3 in the model"):
            fit(tiny_weights(), shapes, **options)
    fitted = fit(tiny_weights(), shapes, new_head=True)
    heads = [f"head.{i}.{n}" for i in (0, 1) for n in ("weight", "bias")]
    assert sorted(fitted.report.fresh) == sorted(heads) and set(fitted.tensors) == set(shapes) - set(heads)
    assert "fresh     4: head.0.weight" in str(fitted.report)
    same = fit(tiny_weights(), TINY_SHAPES, new_head=True)
    assert set(same.tensors) == set(TINY_SHAPES) and not same.report.fresh
    headless = replace(tiny_weights(), tensors={n: t for n, t in tiny_weights().tensors.items() if n not in heads})
    assert sorted(fit(headless, shapes, new_head=True).report.fresh) == sorted(heads)
    with pytest.raises(UserError, match="missing are 4 tensors"):
        fit(headless, shapes)


@pytest.mark.parametrize("theirs, ours", [("mindcv", "official"), ("official", "mindcv")])
@pytest.mark.parametrize("options", [{}, {"partial": True, "new_head": True}], ids=str)
def test_weights_of_other_numerics_are_refused_with_the_setting(theirs, ours, options):
    with pytest.raises(UserError, match=f"build it with model.numerics={theirs}"):
        fit(tiny_weights(numerics=theirs), TINY_SHAPES, ours, **options)
    assert fit(tiny_weights(numerics=theirs), TINY_SHAPES, theirs).tensors


def test_integers_are_no_weights():
    weights = tiny_weights()
    weights.tensors["norm.0.bias"] = np.zeros(4, np.int64)
    with pytest.raises(UserError, match=r"norm\.0\.bias \(\[4\] of int64, the model's is \[4\]\)"):
        fit(weights, TINY_SHAPES)


# Another picture size


@pytest.mark.parametrize("case", reference("weights.json")["positions"], ids=lambda c: f"{c['size']}-{c['new_size']}")
def test_positions_are_resized_as_pytorch_does(case):
    size, new_size, dim = case["size"], case["new_size"], case["dim"]
    grid = golden.u("grid", (1, size * size, dim)).astype(np.float32)
    cls = np.full((1, 1, dim), 9, np.float32)
    found = resize_positions(np.concatenate([cls, grid], 1), new_size**2 + 1)
    assert found.dtype == np.float32 and found.shape == (1, new_size**2 + 1, dim)
    np.testing.assert_array_equal(found[:, :1], cls)
    new = found[0, 1:].reshape(1, new_size, new_size, dim).astype(np.float64)
    np.testing.assert_allclose(new[0, 0, :4].reshape(-1), case["first"], rtol=0, atol=1e-6)
    assert (new * golden.u("resized", new.shape)).sum() == pytest.approx(case["dot"], abs=1e-5)


def test_positions_of_both_branches_follow_the_picture_size():
    shapes = parameter_shapes(TINY.with_overrides({"img_size": (24, 32)}), 5)
    fitted = fit(tiny_weights(), shapes)
    assert fitted.report.resized == [("pos_embed.0", 17, 37), ("pos_embed.1", 5, 17)]
    assert {n: t.shape for n, t in fitted.tensors.items()} == shapes
    assert "resized   pos_embed.1: 5 tokens to 17, bicubic" in str(fitted.report)
    weights = tiny_weights()
    weights.tensors["pos_embed.0"] = np.ones((1, 16, 4), np.float32)  # no square of patches
    with pytest.raises(UserError, match=r"of another shape are 1 tensors, first pos_embed\.0"):
        fit(weights, shapes)


# Which model


def zeros(config, classes: int = 1000) -> dict[str, np.ndarray]:
    return {n: np.broadcast_to(np.float32(0), s) for n, s in parameter_shapes(config, classes).items()}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("classes", [1000, 3])
def test_a_variant_is_known_by_its_shapes(name, classes):
    weights = replace(tiny_weights(), tensors=zeros(ALL[name], classes))
    assert find_variant(weights, wanted=name) == Variant(name, {}, classes)
    twin = "deit_tiny" if name == "cabvit_p_l0" else name  # CabViT-P as released is DeiT-Ti, unless a recipe says
    for wanted in (None, "crossvit_9_240", "deit_small"):
        assert find_variant(weights, wanted) == Variant(twin, {}, classes)


@pytest.mark.parametrize("name, size", [("deit_tiny", 128), ("cabvit_p_l0", 384), ("cabvit_h_l2", 96)])
def test_a_variant_of_another_family_for_another_picture_size(name, size):
    weights = replace(tiny_weights(), tensors=zeros(ALL[name].with_overrides({"img_size": size})))
    assert find_variant(weights, wanted=name) == Variant(name, {"img_size": size}, 1000)


def test_official_cabvits_have_pytorchs_counters_of_batches(tmp_path):
    """As PyTorch saves them: a bare state dict, read whole, fitted all or nothing; and the real l1 by its shapes."""
    found = read_weights(DATA / "weights_cabvit.pth")
    assert (found.kind, found.numerics) == ("official", "official") and "14 tensors left out" in found.notes[0]
    case = reference("cabvit.json")["checkpoint"]
    model = create_model("cabvit_h_l1", 5, **case["config"])
    assert len(load_weights(model, DATA / "weights_cabvit.pth").loaded) == len(found.tensors)
    np.testing.assert_allclose(logits(model, 32), case["logits"], rtol=0, atol=2e-5)

    state = rule_state(parameter_shapes(ALL["cabvit_h_l1"]))
    counters = {n.replace("running_mean", "num_batches_tracked"): np.array(7) for n in state if "running_mean" in n}
    wf.write_zip(tmp_path / "l1.pth", state | counters)
    found = read_weights(tmp_path / "l1.pth")
    assert_same(found.tensors, state)
    assert find_variant(found) == Variant("cabvit_h_l1", {}, 1000) and len(counters) == 19


def test_a_variant_for_another_picture_size_and_none_at_all():
    config = VARIANTS["crossvit_9"].with_overrides({"img_size": (96, 64)})
    tensors = {n: np.broadcast_to(np.float32(0), s) for n, s in parameter_shapes(config).items()}
    found = find_variant(replace(tiny_weights(), tensors=tensors))
    assert (found.name, found.overrides) == ("crossvit_9", {"img_size": (96, 64)})
    del tensors["norm.0.bias"]
    message = "the nearest is crossvit_9, where 1 tensors differ, first norm.0.bias"
    with pytest.raises(UserError, match=message):
        find_variant(replace(tiny_weights(), tensors=tensors))


def test_any_shapes_are_fitted_or_refused():
    rng = np.random.default_rng(0)
    names, answers = [*TINY_SHAPES, "extra"], set()
    for _ in range(300):
        tensors = {}
        for name in rng.choice(names, size=rng.integers(1, 7)):
            near = list(TINY_SHAPES.get(name, ()))
            shape = near[: rng.integers(len(near) + 1)] + list(rng.integers(6, size=rng.integers(2)))
            tensors[str(name)] = np.zeros(shape, np.float32)
        try:
            fitted = fit(replace(tiny_weights(), tensors=tensors), TINY_SHAPES, partial=True)
        except UserError:
            answers.add("refused")
            continue
        answers.add("fitted")
        assert all(t.shape == TINY_SHAPES[n] for n, t in fitted.tensors.items())
    assert answers == {"refused", "fitted"}


# In a model


def logits(model, size: int) -> np.ndarray:
    from mindspore import Tensor

    model.set_train(False)
    return model(Tensor(golden.picture((2, 3, size, size)))).asnumpy()


def test_weights_that_timm_saved_give_timms_logits():
    model = create_model("crossvit_tiny", 5, **TINY_OVERRIDES)
    for name in ("weights_timm.pth", "weights_timm.safetensors", "weights_training.pth"):
        golden_report = load_weights(model, DATA / name)
        assert len(golden_report.loaded) == len(TINY_SHAPES)
        np.testing.assert_allclose(logits(model, 16), reference("weights.json")["logits"], rtol=0, atol=2e-6)
        for parameter in model.get_parameters():
            parameter.set_data(parameter * 0)
    average = load_weights(model, DATA / "weights_training.pth", part="ema")
    assert average.notes[0].startswith("under 'model_ema'")
    assert np.abs(logits(model, 16) - reference("weights.json")["logits"]).max() > 1e-3


def test_a_refused_file_changes_nothing(tmp_path):
    model = create_model("crossvit_tiny", 3, **TINY_OVERRIDES)
    before = values(model)
    with pytest.raises(UserError, match="its head does not fit"):
        load_weights(model, DATA / "weights_timm.pth")
    assert_same(values(model), before)
    load_weights(model, DATA / "weights_timm.pth", new_head=True)
    after = values(model)
    assert np.array_equal(after["head.0.weight"], before["head.0.weight"])
    assert np.array_equal(after["norm.0.weight"], golden.weight("norm.0.weight", (4,)))


@pytest.fixture(scope="module")
def mindcv_file(tmp_path_factory):
    """MindCV's crossvit_9 with the weights by rule, and its checkpoint."""
    import mindcv
    import mindspore as ms

    model = mindcv.create_model("crossvit_9")
    official = to_official(p.name for p in model.get_parameters())
    for parameter in model.get_parameters():
        parameter.set_data(ms.Tensor(golden.weight(official[parameter.name], tuple(parameter.shape))))
    path = tmp_path_factory.mktemp("mindcv") / "crossvit_9.ckpt"
    ms.save_checkpoint(model, str(path))
    return model, path


def test_mindcvs_checkpoint_is_read_and_never_taken_for_official(mindcv_file):
    import mindcv

    theirs, path = mindcv_file
    found = read_weights(path)
    assert (found.kind, found.numerics) == ("mindcv", "mindcv")
    assert_same(found.tensors, rule_state(parameter_shapes(VARIANTS["crossvit_9"])))
    with pytest.raises(UserError, match=r"build it with model\.numerics=mindcv"):
        load_weights(create_model("crossvit_9"), path, partial=True)
    again = mindcv.create_model("crossvit_9")
    assert len(load_weights(again, path).loaded) == len(found.tensors)
    assert_same(values(again), values(theirs))


@pytest.mark.slow
def test_mindcvs_tensors_lie_as_the_official_ones(mindcv_file):
    """On pictures of one colour a resize changes nothing; what then differs is the GELU and the epsilons."""
    from mindspore import Tensor

    ours = create_model("crossvit_9")
    golden.fill(ours)
    picture = Tensor(np.broadcast_to(np.float32([[[[0.5]], [[-1]], [[2]]]]), (1, 3, 240, 240)).copy())
    first, second = (m.set_train(False)(picture).asnumpy() for m in (mindcv_file[0], ours))
    assert np.abs(first).max() > 0.5
    np.testing.assert_allclose(first, second, rtol=0, atol=2e-3)


def test_own_checkpoints_of_mindcvs_other_models(tmp_path):
    from mindcv_crossvit.training.checkpoint import write_checkpoint

    first, second = (create_model("mindcv/squeezenet1_0", 4, seed=s) for s in (1, 2))
    path = tmp_path / "a.safetensors"
    meta = {"model": {"name": "mindcv/squeezenet1_0"}, "class_names": list("abcd"), "update": 3}
    write_checkpoint(path, {f"model.{n}": v for n, v in values(first).items()}, meta)
    report = load_weights(second, path)
    assert (report.kind, report.numerics) == ("suite", None) and "mindcv/squeezenet1_0 after update 3" in report.notes[
        0
    ]
    assert_same(values(second), values(first))


def test_own_checkpoints_raw_and_averaged(tmp_path):
    from mindcv_crossvit.training.checkpoint import write_checkpoint

    state, path = rule_state(TINY_SHAPES), tmp_path / "a.safetensors"
    tensors = {f"model.{n}": v for n, v in state.items()} | {"optimizer.m.norm.0.bias": np.ones(4, np.float32)}
    meta = {"model": {"name": "crossvit_tiny", "numerics": "mindcv"}, "class_names": [], "update": 3}
    write_checkpoint(path, tensors, meta)
    found = read_weights(path)
    assert (found.kind, found.numerics, found.meta) == ("suite", "mindcv", meta)
    assert_same(found.tensors, state)
    with pytest.raises(UserError, match="has no ema weights"):
        read_weights(path, "ema")
    write_checkpoint(path, tensors | {f"ema.{n}": v + 1 for n, v in state.items()}, meta)
    assert_same(read_weights(path, "ema").tensors, {n: v + 1 for n, v in state.items()})
    assert_same(read_weights(path).tensors, state)


def golden_cases():
    """Every CrossViT's, and those of one model of each other family."""
    for row in official_rows():
        if not row["overrides"] and (row["model"].startswith("crossvit") or row["model"] in OTHERS):
            quick = row["model"] == "crossvit_9_224"
            yield pytest.param(row, id=row["model"], marks=() if quick else (pytest.mark.slow,))


@pytest.mark.parametrize("row", golden_cases())
def test_the_golden_logits_come_out_of_every_format(row, tmp_path):
    model = create_model(row["model"])
    state = {p.name: golden.weight(p.name, tuple(p.shape)) for p in model.get_parameters()}
    for kind, write in wf.FORMATS.values():
        if kind == "timm" and row["model"] in OTHERS:  # timm's names are the official ones, or it has no such model
            continue
        for parameter in model.get_parameters():
            parameter.set_data(parameter * 0)
        write(tmp_path / "weights", state)
        assert load_weights(model, tmp_path / "weights").kind == kind
        (tmp_path / "weights").unlink()
        found = logits(model, row["input"][0])
        np.testing.assert_allclose([*found[0, :4], found[1, 0]], [*row["first"], row["second"]], rtol=0, atol=5e-5)


def test_weights_are_read_and_fitted_without_mindspore():
    code = (
        "import sys, mindcv_crossvit.models.shapes, mindcv_crossvit.weights.load, mindcv_crossvit.weights.variant\n"
        "from mindcv_crossvit.weights.read import read_weights\n"
        f"read_weights({str(DATA / 'weights_training.pth')!r})\n"
        "assert not {'mindspore', 'torch', 'mindcv'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
