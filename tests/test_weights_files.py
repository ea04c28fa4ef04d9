"""Weights files of every kind: what real PyTorch, timm and MindSpore wrote, and what is damaged, lying or hostile."""

from __future__ import annotations

import pickle
import re
import zipfile

import numpy as np
import pytest
import weight_files as wf
from reference import DATA, reference

from mindcv_crossvit.errors import UserError
from mindcv_crossvit.models import golden
from mindcv_crossvit.models.crossvit_config import VARIANTS
from mindcv_crossvit.models.shapes import parameter_shapes
from mindcv_crossvit.weights.mindspore_file import read_ckpt
from mindcv_crossvit.weights.read import read_weights
from mindcv_crossvit.weights.torch_file import Storage, TorchFile, TorchTensor

REAL = sorted(p.name for p in DATA.glob("weights_*") if "hostile" not in p.name)
TINY = VARIANTS["crossvit_tiny"].with_overrides(
    {k: reference("weights.json")["config"][k] for k in ("patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio")}
    | {"img_size": (16, 16)}
)
TINY_SHAPES = parameter_shapes(TINY, 5)


def rule_state(shapes):
    return {n: golden.weight(n, s) for n, s in shapes.items()}


def assert_same(found, expected):
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and found[name].shape == value.shape
        assert np.array_equal(found[name], value), name


@pytest.mark.parametrize(
    "name, kind",
    [("weights_timm.pth", "timm"), ("weights_timm.safetensors", "timm"), ("weights_training.pth", "official")],
)
def test_files_of_pytorch_and_timm_have_the_weights_by_rule(name, kind):
    found = read_weights(DATA / name)
    assert (found.kind, found.numerics) == (kind, "official")
    assert_same(found.tensors, rule_state(TINY_SHAPES))


def test_a_training_checkpoint_has_two_sets_of_weights():
    raw, average = (read_weights(DATA / "weights_training.pth", part) for part in ("model", "ema"))
    assert_same(average.tensors, {n: v * np.float32(0.5) for n, v in raw.tensors.items()})
    assert "beside it optimizer, epoch, args, max_accuracy, model_ema" in raw.notes[0]
    with pytest.raises(UserError, match="one set of weights and no ema part"):
        read_weights(DATA / "weights_timm.pth", "ema")
    with pytest.raises(UserError, match="part: expected one of model, ema, got 'averages'"):
        read_weights(DATA / "weights_timm.pth", "averages")


def test_other_keys_and_the_prefix_of_data_parallel_training(tmp_path):
    state = rule_state(TINY_SHAPES)
    parallel = {f"module.{n}": v for n, v in state.items()}
    for part, key in (("model", "state_dict"), ("ema", "state_dict_ema")):
        wf.write_legacy(tmp_path / "a.pth", parallel, under=key)
        found = read_weights(tmp_path / "a.pth", part)
        assert found.notes == (f"under {key!r} of a training checkpoint; beside it epoch",)
        assert_same(found.tensors, state)


@pytest.mark.parametrize("name", ["weights_odd.pth", "weights_odd_legacy.pth"])
def test_strides_offsets_shared_storages_and_other_kinds_of_numbers(name):
    found, expected = read_weights(DATA / name).tensors, reference("weights.json")["odd"]
    assert set(found) == set(expected)
    for tensor, facts in expected.items():
        assert list(found[tensor].shape) == facts["shape"], tensor
        np.testing.assert_array_equal(found[tensor].reshape(-1), np.float32(facts["values"]), err_msg=tensor)
    floats = {"base", "transposed", "rows", "column", "every_other", "half", "bfloat16", "double"}
    assert {n for n, t in found.items() if t.dtype == np.float32} == floats | {"parameter", "empty"}
    assert found["long"].dtype == np.int64 and found["bool"].dtype == bool


@pytest.mark.parametrize("name", ["weights_hostile.pth", "weights_hostile_legacy.pth"])
def test_a_hostile_pickle_is_refused_by_name_and_does_not_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"refused, nothing was run: it needs (posix|nt)\.mkdir"):
        read_weights(DATA / name)
    assert not list(tmp_path.iterdir())
    with zipfile.ZipFile(DATA / "weights_hostile.pth") as archive:  # the same pickle does run where pickles are run
        content = archive.read("weights_hostile/data.pkl").split(b"cposix\n")[1]
    pickle.loads(b"\x80\x02cposix\n" + content.split(b"R", 1)[0] + b"R.")
    assert (tmp_path / "the_pickle_was_run").is_dir()


def refused(path, message, content):
    wf.write_zip(path, {"a": np.ones((2, 3), np.float32)}, content)
    with pytest.raises(UserError, match=message):
        read_weights(path)


NESTED = b")" + b"\x85" * 20_000  # a tuple in a tuple in a tuple


@pytest.mark.parametrize(
    "message, content",
    [
        (r"it needs builtins\.eval", b"cbuiltins\neval\n" + wf.text("1") + b"\x85R"),
        (r"it needs os\.system", wf.text("os") + wf.text("system") + b"\x93"),
        (r"it needs builtins\.getattr", b"cbuiltins\ngetattr\n"),
        (r"it needs omegaconf\.DictConfig", wf.mapping({"cfg": b"comegaconf\nDictConfig\n)\x81"})),
        (r"a call of torch\.FloatStorage", b"ctorch\nFloatStorage\n)R"),
        ("it needs the pickle instruction INST", b"(ios\nsystem\n"),
        ("it needs the pickle instruction EXT1", b"\x82\x01"),
        ("sets attributes of a Named", b"ccollections\nOrderedDict\n}b"),
        ("calls a str", wf.text("a") + b")R"),
        ("a tuple as the key of a dict", b"})Ns"),
        ("its pickle cannot be read", b"u"),
        ("holds a int, not a state dict", wf.number(3)),
        ("no weights under 'model' or 'state_dict'; its keys are epoch", wf.mapping({"epoch": wf.number(3)})),
        ("a tensor without storage", b"ctorch._utils\n_rebuild_tensor_v2\n(NK\x00))tR"),
        ("maximum recursion depth", b"(" + wf.text("storage") + b"ctorch\nFloatStorage\n" + NESTED + b"NNtQ"),
        ("a persistent id that is no storage", wf.text("s") + b"Q"),
    ],
)
def test_other_pickles_are_refused_with_the_reason(tmp_path, message, content):
    refused(tmp_path / "a.pth", message, content)


STORAGE = b"(" + wf.text("storage") + b"ctorch\nFloatStorage\n" + wf.text("0") + wf.text("cpu")
HUGE = b"\x8a\x06" + (2**40).to_bytes(6, "little")


@pytest.mark.parametrize(
    "message, storage, view",
    [
        (r"storage 0 has 24 bytes instead of 1099511627776 numbers", HUGE, wf.numbers((6,)) + wf.numbers((1,))),
        (r"does not fit into a storage of 6", wf.number(6), wf.numbers((100000, 100000)) + wf.numbers((0, 0))),
        (r"does not fit into a storage of 6", wf.number(6), wf.numbers((2,)) + wf.numbers((6,))),
        (r"a tensor of shape .*-1", wf.number(6), wf.numbers((-1,)) + wf.numbers((1,))),
        (r"a tensor of shape", wf.number(6), wf.numbers((2, 3)) + wf.numbers((1,))),
    ],
)
def test_a_lying_size_is_refused_and_nothing_allocated(tmp_path, message, storage, view):
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE + storage + b"tQ" + wf.number(0) + view + b"\x89}tR"
    refused(tmp_path / "a.pth", message, wf.mapping({"a": tensor}))


def test_storages_that_overlap_are_refused():
    """As the members of a zip archive may: a small file must not become a large number of arrays."""
    storages = [Storage(str(i), "float32", 20) for i in range(3)]
    file = TorchFile(None, lambda _: bytes(80), 200)
    for storage in storages[:2]:
        assert file.array(TorchTensor(storage, 0, (20,), (1,))).size == 20
    with pytest.raises(ValueError, match="its storages overlap"):
        file.array(TorchTensor(storages[2], 0, (20,), (1,)))


@pytest.mark.parametrize("claim", [b"r\xff\xff\xff\x7f", b"X\xff\xff\xff\x7f", b"\x8d" + b"\xff" * 7 + b"\x0f"])
def test_a_large_number_in_a_pickle_allocates_nothing(tmp_path, claim):
    path = tmp_path / "a.pth"
    wf.write_zip(path, {}, b"N" + claim)
    with pytest.raises(UserError, match=r"a\.pth"):
        read_weights(path)


def test_a_compressed_archive_is_refused(tmp_path):
    wf.write_zip(tmp_path / "a.pth", {"a": np.zeros(1_000_000, np.float32)}, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="is compressed, which torch"):
        read_weights(tmp_path / "a.pth")


def test_what_is_no_weights_file_is_named(tmp_path):
    page, program, other = tmp_path / "page.pth", tmp_path / "program.pth", tmp_path / "plain.pkl"
    page.write_text("<!DOCTYPE html>")
    with zipfile.ZipFile(program, "w") as archive:
        archive.writestr("a/data.pkl", b"N.")
        archive.writestr("a/constants.pkl", b"N.")
    other.write_bytes(pickle.dumps({"a": 1}))
    for path, message in (
        (page, "no weights file, it begins with b'<!DOCTYPE html>'; understood are PyTorch's .pth"),
        (program, "a TorchScript program"),
        (other, "a pickle that torch.save did not write"),
        (tmp_path / "none.pth", "no such file"),
        (tmp_path, "a folder"),
    ):
        with pytest.raises(UserError, match=message):
            read_weights(path)


@pytest.mark.parametrize("name", REAL)
def test_a_cut_file_is_refused_wherever_it_is_cut(name, tmp_path):
    whole, path = (DATA / name).read_bytes(), tmp_path / name
    for end in sorted({*range(0, len(whole), max(len(whole) // 60, 1)), len(whole) - 1}):
        path.write_bytes(whole[:end])
        with pytest.raises(UserError, match=re.escape(str(path))):
            read_weights(path)


@pytest.mark.parametrize("name", REAL)
def test_damage_is_refused_or_only_changes_numbers(name, tmp_path):
    """A format without a checksum cannot notice a changed number; whatever happens, it is one of our two answers."""
    whole, path, rng = (DATA / name).read_bytes(), tmp_path / name, np.random.default_rng(0)
    answers = set()
    for _ in range(100):
        bad = bytearray(whole)
        for at in rng.integers(len(bad), size=int(rng.integers(1, 4))):
            bad[at] = int(rng.integers(256))
        path.write_bytes(bad)
        try:
            answers.add(bool(read_weights(path).tensors))
        except UserError:
            answers.add(False)
    assert False in answers


def save_small(path, **options):
    import mindspore as ms

    rng = np.random.default_rng(0)
    values = {
        "a": rng.normal(size=(3, 4)),
        "b": np.float64(3.5),
        "c": rng.normal(size=(300,)),
        "n": rng.integers(9, size=4),
    }
    made = {n: np.asarray(v, np.int64 if n == "n" else np.float32) for n, v in values.items()}
    ms.save_checkpoint([{"name": n, "data": ms.Tensor(v)} for n, v in made.items()], str(path), **options)
    return made


@pytest.mark.parametrize("options", [{}, {"crc_check": True}, {"format": "safetensors"}], ids=str)
def test_what_mindspore_saved_is_read(tmp_path, options):
    path = tmp_path / f"a.{options.get('format', 'ckpt')}"
    expected = save_small(path, **options)
    found = read_weights(path)
    assert found.kind == "other" and found.numerics is None
    if "format" in options:
        expected["b"] = expected["b"].reshape(found.tensors["b"].shape)
    assert_same(found.tensors, expected)


def test_a_cut_ckpt_is_refused_or_lacks_tensors(tmp_path):
    expected = save_small(tmp_path / "a.ckpt")
    whole, path, complete = (tmp_path / "a.ckpt").read_bytes(), tmp_path / "cut.ckpt", 0
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        try:
            found = read_weights(path).tensors
        except UserError:
            continue
        assert set(found) < set(expected)  # cut between two tensors: fitting refuses it
        complete += 1
    assert complete == len(expected) - 1


def test_a_ckpt_with_a_checksum_notices_every_damage(tmp_path):
    save_small(tmp_path / "a.ckpt", crc_check=True)
    whole, path = (tmp_path / "a.ckpt").read_bytes(), tmp_path / "bad.ckpt"
    for at in range(0, len(whole), 7):
        bad = bytearray(whole)
        bad[at] ^= 1 << at % 8
        path.write_bytes(bad)
        with pytest.raises(UserError, match=r"bad\.ckpt"):
            read_weights(path)


def test_a_large_tensor_in_slices_and_half_precision(tmp_path):
    from mindspore.train.checkpoint_pb2 import Checkpoint

    values = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float16)
    written = Checkpoint()
    for piece in np.array_split(values, 3):
        value = written.value.add()
        value.tag = "a"
        value.tensor.dims.extend(values.shape)
        value.tensor.tensor_type, value.tensor.tensor_content = "Float16", piece.tobytes()
    np.testing.assert_array_equal(read_ckpt(written.SerializeToString())["a"], values.astype(np.float32))
    del written.value[2]
    with pytest.raises(ValueError, match="a has 18 bytes instead of shape"):
        read_ckpt(written.SerializeToString())
    written.value[1].tensor.tensor_type = "Int4"
    with pytest.raises(ValueError, match="twice with different shapes"):
        read_ckpt(written.SerializeToString())


LARGE = ("crossvit_base", "crossvit_18", "crossvit_18_dagger", "crossvit_18_dagger_384")
QUICK = ("official_legacy.pth", "timm.safetensors")


def cases():
    for variant in VARIANTS:
        for name in wf.FORMATS:
            slow = variant in LARGE and name not in QUICK
            yield pytest.param(variant, name, marks=(pytest.mark.slow,) if slow else (), id=f"{variant}-{name}")


@pytest.mark.parametrize("variant, name", cases())
def test_every_variant_comes_back_bitwise_from_every_format(variant, name, tmp_path):
    rng = np.random.default_rng(0)
    state = {n: rng.random(s, np.float32) for n, s in parameter_shapes(VARIANTS[variant]).items()}
    kind, write = wf.FORMATS[name]
    write(tmp_path / "weights", state)
    found = read_weights(tmp_path / "weights")
    (tmp_path / "weights").unlink()
    assert (found.kind, found.numerics) == (kind, "official")
    assert_same(found.tensors, state)
