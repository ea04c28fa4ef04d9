"""The ledger of published figures: its statuses follow from the data, and the data from the models as they are now."""

from __future__ import annotations

import hashlib
import sys
from decimal import Decimal
from math import prod

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from reference import official_rows, reference

from mindcv_crossvit.errors import UserError
from mindcv_crossvit.models.catalog import VARIANTS, macs, parameter_shapes, resolve
from mindcv_crossvit.models.crossformer_counts import backbone_shapes

sys.path.insert(0, str(ROOT / "scripts"))
import claims
import comparison
import update_readme
import verify_claims

DOCS = ROOT / "docs"
PUBLISHED = claims.load(DOCS / claims.PUBLISHED)
ENTRIES = {e["name"]: e for e in PUBLISHED["entries"]}


@pytest.fixture
def measured() -> dict:
    """What the committed run measured; a copy to change."""
    return claims.load(DOCS / claims.MEASURED)


def rows_of(name: str, measured: dict) -> dict[tuple[str, str], claims.Row]:
    return {(r.figure, r.source): r for r in claims.judge(ENTRIES[name], PUBLISHED, measured)}


def score(top1: float, top5: float) -> dict:
    """A measurement on all validation pictures."""
    return {"top1": top1, "top5": top5, "images": 50_000, "weights": "w.pth", "sha256": "ab" * 32}


def statuses(measured: dict) -> list[str]:
    return [r.status for group in claims.all_rows(PUBLISHED, measured).values() for r in group]


def test_the_results_page_and_the_readme_are_what_the_data_say(measured):
    assert (DOCS / claims.RESULTS).read_text(encoding="utf-8") == claims.render(PUBLISHED, measured)
    assert update_readme.variants() in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_committed_run_checked_everything_that_can_be_checked_without_imagenet(measured):
    assert claims.UNCHECKED not in statuses(measured) and claims.HERE in statuses(measured)
    assert measured["command"] == "python scripts/verify_claims.py" and set(measured["entries"]) == set(ENTRIES)


@pytest.mark.parametrize("name", sorted(ENTRIES))
def test_parameters_and_macs_are_still_what_was_measured(name, measured):
    """By the shapes, which other tests hold equal to the built models'."""
    entry, found = ENTRIES[name], measured["entries"][name]
    config = VARIANTS[entry["model"]].with_overrides(entry.get("overrides", {}))
    shapes = backbone_shapes(config) if entry.get("backbone") else parameter_shapes(config)
    assert found["params"] == sum(prod(s) for n, s in shapes.items() if "running_" not in n)
    assert found.get("macs") == (None if entry.get("backbone") else macs(config))


def test_every_row_of_the_official_code_belongs_to_an_entry_and_is_labelled_by_who_made_it():
    claimed = {name: comparison.official_rows(entry) for name, entry in ENTRIES.items()}
    dense = {name for name, entry in ENTRIES.items() if entry.get("backbone")}
    found = [(resolve(r["model"]), r.get("overrides", {})) for name in set(ENTRIES) - dense for r in claimed[name]]
    rows = [(resolve(r["model"]), r["overrides"]) for r in official_rows()]
    assert {str(row) for row in found} == {str(row) for row in rows}
    maps = [row for name in dense for row in claimed[name]]
    assert len(maps) == len(reference("crossformer.json")["maps"]) == 8
    timms = {row["model"] for row in reference("deit.json")["rows"]}
    assert {name for name, entry in ENTRIES.items() if entry.get("logits_by", "").startswith("timm")} == timms


def test_every_model_of_the_suite_has_an_entry_with_counts():
    models = {entry["model"] for entry in ENTRIES.values() if not entry.get("backbone")}
    backbones = {entry["model"] for entry in ENTRIES.values() if entry.get("backbone")}
    assert models == set(VARIANTS) and backbones == {name for name in VARIANTS if name.startswith("crossformer")}
    for name, entry in ENTRIES.items():
        if name == entry["model"] or entry.get("backbone") or "hybrid_backbone" in entry.get("overrides", {}):
            assert "params" in {claim["figure"] for claim in entry["claims"]}, name


@pytest.mark.parametrize(
    "key, allowed", [("difference", claims.LOGITS), ("sums", claims.SUMS), ("absolute_sums", claims.ROUNDING)]
)
def test_maps_beyond_the_tolerance_differ(measured, key, allowed):
    where = ("maps", claims.OFFICIAL)
    row = rows_of("crossformer_s_backbone", measured)[where]
    assert row.status == claims.HERE and "of themselves" in row.ours
    measured["entries"]["crossformer_s_backbone"]["logits"][key] = 1.01 * allowed
    assert rows_of("crossformer_s_backbone", measured)[where].wrong


@pytest.mark.parametrize(
    "value, published, same",
    [
        ("6.949", "6.9", True),
        ("6.95", "7.0", True),
        ("6.95", "6.9", False),
        ("31.155", "31.1", False),
        ("5", "5.0", True),
    ],
)
def test_rounding(value, published, same):
    assert claims.rounds_to(Decimal(value), published) is same


def test_a_changed_count_differs_and_fails_the_run(measured):
    row = rows_of("crossvit_9", measured)["parameters, M", "paper"]
    assert row.status == claims.HERE and row.ours == "8,553,296"
    measured["entries"]["crossvit_9"]["params"] += 100_000
    row = rows_of("crossvit_9", measured)["parameters, M", "paper"]
    assert row.status == claims.DIFFERS and row.wrong
    del measured["entries"]["crossvit_9"]["params"]
    assert rows_of("crossvit_9", measured)["parameters, M", "paper"].status == claims.UNCHECKED


def test_the_papers_count_is_compared_as_the_paper_counts(measured):
    row = rows_of("crossvit_tiny", measured)["parameters, M", "paper"]
    assert (
        (row.ours, row.status)
        == (
            "6,938,480",
            claims.HERE,
        )
        and "without the position embeddings" in row.note
        and "7,014,800" in row.note
    )
    row = rows_of("row_b", measured)["parameters, M", "paper"]
    assert (row.ours, row.status) == ("31,403,600", claims.HERE) and "projections" in row.note
    row = rows_of("row_e", measured)["parameters, M", "paper"]  # 31.16 against 31.1, not explained by anyone
    assert row.status == claims.DIFFERS and row.known and not row.wrong


@pytest.mark.parametrize("key, allowed", [("difference", claims.LOGITS), ("sums", claims.SUMS)])
def test_logits_beyond_the_tolerance_differ(measured, key, allowed):
    logits = measured["entries"]["crossvit_15"]["logits"]
    where = ("logits", claims.OFFICIAL)
    assert rows_of("crossvit_15", measured)[where].status == claims.HERE
    logits[key] = 1.01 * allowed
    assert rows_of("crossvit_15", measured)[where].wrong
    measured["entries"]["crossvit_15"]["logits"] = None
    assert rows_of("crossvit_15", measured)[where].status == claims.UNCHECKED


def test_an_accuracy_is_verified_only_on_all_validation_pictures(measured):
    top1 = ("top-1, %", "paper")
    row = rows_of("crossvit_18_dagger", measured)[top1]
    assert row.status == claims.UNVERIFIED and "timm's result table has 82.494" in row.note
    assert rows_of("crossvit_tiny", measured)[top1].status == claims.ELSEWHERE
    found = score(82.51, 96.07)
    measured["entries"]["crossvit_18_dagger"]["accuracy"] = {"0.875": found}
    assert rows_of("crossvit_18_dagger", measured)[top1].status == claims.DIFFERS
    row = rows_of("crossvit_18_dagger", measured)["top-1, %", "timm"]
    assert row.status == claims.HERE and row.note == "w.pth, SHA-256 abababababababab..."
    found["images"] = 49_999
    row = rows_of("crossvit_18_dagger", measured)["top-1, %", "timm"]
    assert row.status == claims.UNVERIFIED and "49,999 pictures of 50,000" in row.note


def test_somebody_elses_weights_are_not_judged_by_the_official_ones(measured):
    measured["entries"]["crossvit_9"]["accuracy"] = {"0.875": score(73.38, 91.51)}
    row = rows_of("crossvit_9", measured)["top-1, %", "MindCV, Ascend 910*"]
    assert row.status == claims.ELSEWHERE and not row.ours


def test_the_large_inputs_are_compared_on_their_own_crop(measured):
    name = "crossvit_15_dagger_384"
    assert "with a crop of 1 instead of 0.875" in rows_of(name, measured)["top-1, %", "paper"].note
    measured["entries"][name]["accuracy"] = {"1.0": score(83.84, 96.79)}
    assert rows_of(name, measured)["top-1, %", "timm"].status == claims.HERE
    assert rows_of(name, measured)["top-1, %", "paper"].ours == ""


def test_every_claim_names_a_source_and_a_group():
    assert all(e["group"] in PUBLISHED["groups"] for e in ENTRIES.values())
    for claim in (c for e in ENTRIES.values() for c in e["claims"]):
        assert claim["source"] in PUBLISHED["sources"] and claim["figure"] in claims.FIGURES


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """Folders like ImageNet's validation set: 1000 classes, one small picture each."""
    root = tmp_path_factory.mktemp("imagenet")
    for k in range(1000):
        folder = root / "val" / f"n{k:08d}"
        folder.mkdir(parents=True)
        Image.fromarray(np.full((9, 8, 3), k % 256, np.uint8)).save(folder / "one.png")
    return root


@pytest.mark.usefixtures("graph_mode")
def test_given_weights_are_scored_and_compared(imagenet, tmp_path, run_script):
    """Biases decide every picture: class 250 first, then 500, 1, 2, 3; pictures 0, 250, 500 and 750 are looked at."""
    from safetensors.numpy import save_file

    from mindcv_crossvit import create_model
    from mindcv_crossvit.models import golden

    tensors = {p.name: golden.weight(p.name, p.shape) for p in create_model("crossvit_9").get_parameters()}
    for place, label in enumerate((250, 500, 1, 2, 3)):
        for branch in (0, 1):
            tensors[f"head.{branch}.bias"][label] = 1000 - 100 * place
    timm = {n.replace("pos_embed.", "pos_embed_").replace("cls_token.", "cls_token_"): t for n, t in tensors.items()}
    save_file(timm, tmp_path / "crossvit_9_240.in1k.safetensors")
    options = ("--models", "crossvit_9_240", "--no-logits", "--pictures", 4, "--output", tmp_path)
    done = run_script("scripts/verify_claims.py", "--data_dir", imagenet, "--weights", tmp_path, *options)
    assert done.returncode == 0, done.stderr
    assert "top1 claimed 73.9 (paper), measured 25.000 on 4 pictures, difference -48.900" in done.stdout
    assert "top5 claimed 91.976 (timm), measured 50.000 on 4 pictures, difference -41.976" in done.stdout
    measured = claims.load(tmp_path / claims.MEASURED)
    found = measured["entries"]["crossvit_9"]["accuracy"]["0.875"]
    digest = hashlib.sha256((tmp_path / found["weights"]).read_bytes()).hexdigest()
    assert found["images"] == 4 and found["sha256"] == digest
    rows = rows_of("crossvit_9", measured)
    assert rows["top-1, %", "timm"].status == claims.UNVERIFIED and rows["top-1, %", "timm"].ours == "25.000"
    assert rows["parameters, M", "paper"].status == claims.HERE
    assert rows["logits", claims.OFFICIAL].status == claims.UNCHECKED
    assert rows_of("crossvit_15", measured)["parameters, M", "paper"].status == claims.UNCHECKED
    assert (tmp_path / claims.RESULTS).read_text() == claims.render(PUBLISHED, measured)


@pytest.mark.usefixtures("graph_mode")
@pytest.mark.parametrize("extra, code", [(0, 0), (100_000, 1)])
def test_the_exit_code_tells_of_a_count_that_differs(extra, code, monkeypatch, tmp_path):
    counted = {"params": 8_553_296 + extra, "macs": 1_840_796_160}
    monkeypatch.setattr(comparison, "counts", lambda entry, model: dict(counted))
    options = ["verify_claims.py", "--models", "crossvit_9", "--no-logits", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", options)
    assert verify_claims.main() == code


def test_weights_are_found_by_their_names(tmp_path):
    for name in ("crossvit_9_224.pth", "crossvit_15_dagger_408.in1k.safetensors", "other.pth", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    names = set(ENTRIES)
    found = verify_claims.find_weights([str(tmp_path), f"crossvit_18={tmp_path / 'other.pth'}"], names)
    assert {k: v.name for k, v in found.items()} == {
        "crossvit_9": "crossvit_9_224.pth",
        "crossvit_15_dagger_384": "crossvit_15_dagger_408.in1k.safetensors",
        "crossvit_18": "other.pth",
    }
    with pytest.raises(UserError, match=r"other.pth is named after none .*(?s:.)*no file or folder"):
        verify_claims.find_weights([str(tmp_path / "other.pth"), str(tmp_path / "missing.pth")], names)


def test_fewer_classes_than_imagenets_are_refused(tmp_path):
    (tmp_path / "val" / "cat").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "val" / "cat" / "1.png")
    with pytest.raises(UserError, match="1 class folders, expected the 1000"):
        verify_claims.open_validation(str(tmp_path), None)
    with pytest.raises(UserError, match="expected the folder"):
        verify_claims.open_validation(str(tmp_path / "val"), None)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--models", "crossvit_91"], "did you mean crossvit_9"),
        (["--data_dir", "/x"], "need both"),
        (["--pictures", "4"], "goes with --data_dir"),
        (["--weights", "/no/such.pth", "--data_dir", "/x"], "no file or folder /no/such.pth"),
    ],
)
def test_wrong_options_are_one_message_and_code_2(arguments, message, run_script):
    done = run_script("scripts/verify_claims.py", *arguments)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
