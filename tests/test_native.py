"""The C++ kernels: right with odd shapes and under an address sanitizer, and refused where they cannot be used."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mindcv_crossvit import compile as cpp
from mindcv_crossvit.errors import UserError
from mindcv_crossvit.ops import choose
from mindcv_crossvit.ops.native import build

CHECK = Path(__file__).with_name("native_kernels.py")
SANITIZED = ("-O1", "-g", "-std=c++17", "-fopenmp", "-shared", "-fPIC", "-fsanitize=address", "-DCROSSVIT_PLAIN")


def run(library: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(CHECK), str(library)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})


@pytest.mark.parametrize("threads", ["1", "3"])
def test_every_kernel_agrees_with_float64(threads):
    done = run(build.library(), OMP_NUM_THREADS=threads)
    assert done.stdout == "all kernels agree\n", done.stderr


def test_kernels_stay_within_their_memory(tmp_path):
    library = cpp.compiled(build.SOURCE, tmp_path, SANITIZED)
    sanitizer = subprocess.run([cpp.compiler(), "-print-file-name=libasan.so"], capture_output=True, text=True)
    done = run(library, LD_PRELOAD=sanitizer.stdout.strip(), ASAN_OPTIONS="detect_leaks=0", OMP_NUM_THREADS="2")
    assert done.stdout == "all kernels agree\n", done.stderr[-3000:]


def test_the_sanitizer_would_have_seen_a_write_too_far(tmp_path):
    text = build.SOURCE.read_text()
    wrong = tmp_path / "wrong.cc"
    wrong.write_text(text.replace("add_row(block + r * conv.outer, bias", "add_row(block + r * conv.outer + 1, bias"))
    assert wrong.read_text() != text
    library = cpp.compiled(wrong, tmp_path, SANITIZED)
    sanitizer = subprocess.run([cpp.compiler(), "-print-file-name=libasan.so"], capture_output=True, text=True)
    done = run(library, LD_PRELOAD=sanitizer.stdout.strip(), ASAN_OPTIONS="detect_leaks=0", OMP_NUM_THREADS="2")
    assert "heap-buffer-overflow" in done.stderr


def test_nothing_shipped_is_made_for_one_processor():
    assert not any(flag.startswith(("-march", "-mtune", "-mavx", "-ffast-math")) for flag in build.FLAGS)


def test_without_a_compiler_it_says_what_to_use(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.delenv("CXX", raising=False)
    build.library.cache_clear()
    with pytest.raises(UserError, match=r"run.ops: native: a C\+\+ compiler .* use run.ops=composed"):
        build.library()


def test_a_compiler_that_fails_is_quoted(tmp_path):
    broken = tmp_path / "broken.cc"
    broken.write_text("this is no C++;\n")
    with pytest.raises(UserError, match=r"could not compile broken.cc \(.*error"):
        cpp.compiled(broken, tmp_path / "cache", build.FLAGS)
    assert not list((tmp_path / "cache").iterdir())


def test_kernels_are_compiled_once(tmp_path):
    first = cpp.compiled(build.SOURCE, tmp_path, build.FLAGS)
    written = first.stat().st_mtime_ns
    assert cpp.compiled(build.SOURCE, tmp_path, build.FLAGS) == first and first.stat().st_mtime_ns == written


@pytest.mark.parametrize("change", ["gone", "foreign", "other arithmetic"])
def test_another_mindspore_is_refused(change, tmp_path, monkeypatch):
    package = tmp_path / "mindspore"
    (package / "lib").mkdir(parents=True)
    (package / "__init__.py").touch()
    if change != "gone":
        source = tmp_path / "dnnl.cc"
        symbol = "dnnl_sgemm" if change == "other arithmetic" else "something_else"
        source.write_text(f'extern "C" int {symbol}() {{ return 0; }}\n')
        target = str(package / "lib" / "libdnnl.so.9")
        subprocess.run([cpp.compiler(), "-shared", "-fPIC", str(source), "-o", target], check=True)
    monkeypatch.setattr(build, "find_spec", lambda name: type("Spec", (), {"origin": str(package / "__init__.py")}))
    with pytest.raises(UserError, match=r"native was made for another MindSpore: .*; use run.ops=composed"):
        build.sgemm()


def test_half_precision_is_refused():
    with pytest.raises(ValueError, match="float32 only"):
        choose("native", precision="O2")


def test_a_model_gives_the_same_logits_and_gradients(graph_mode):
    from mindspore import Tensor, nn, ops

    from mindcv_crossvit import create_model

    class Loss(nn.Cell):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def construct(self, x):
            return (self.model(x) ** 2).sum()

    small = {"img_size": (48, 32), "embed_dim": (16, 32), "depth": ((1, 2, 0),), "num_heads": (2, 4)}
    images = np.random.default_rng(0).standard_normal((3, 3, 48, 48), np.float32)
    found = []
    for name in ("composed", "native"):
        model = create_model("crossvit_tiny", 5, ops=name, **small).set_train()
        loss = Loss(model).set_train()
        value, gradients = ops.value_and_grad(loss, None, list(model.trainable_params()))(Tensor(images))
        found.append([value.asnumpy(), *[g.asnumpy() for g in gradients]])
    for composed, native in zip(*found, strict=True):
        np.testing.assert_allclose(native, composed, rtol=1e-4, atol=1e-5)
