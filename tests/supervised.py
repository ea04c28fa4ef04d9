"""A supervised job in a test, and a slow disk for it."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path

from running import ROOT, msrun_env

SLOW_DISK = """
import os, time
fsync = os.fsync
def slow(handle):
    time.sleep(0.5)
    fsync(handle)
os.fsync = slow
"""


def slow_disk(env: dict[str, str], folder: Path) -> dict[str, str]:
    """An environment whose Python takes half a second to sync a file."""
    (folder / "slow").mkdir()
    (folder / "slow" / "sitecustomize.py").write_text(SLOW_DISK)
    return {**env, "PYTHONPATH": str(folder / "slow")}


def marked(mark: str) -> dict[int, dict[str, str]]:
    """Environment of every process that has the entry `mark` in it, NAME=VALUE, by process id."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if mark in words:
            found[int(path.parent.name)] = dict(w.split("=", 1) for w in words if "=" in w)
    return found


def people(mark: str) -> dict[str, dict]:
    """What the ranks among the processes with the entry `mark` say, by name."""
    found = {}
    for folder in {env["CROSSVIT_PRESENCE"] for env in marked(mark).values() if "CROSSVIT_PRESENCE" in env}:
        for path in Path(folder).glob("*.json"):
            with contextlib.suppress(OSError, ValueError):
                found[path.stem] = json.loads(path.read_text())
    return found


class Supervised:
    """A supervisor with its job, or the job alone, in an environment that marks every process of it."""

    def __init__(
        self,
        logs: Path,
        command: list[object],
        *options: object,
        env: dict[str, str] | None = None,
        supervised: bool = True,
        said: Path | None = None,
    ):
        self.logs, self.said = logs, said or logs.parent / "said.txt"
        self.mark = f"CROSSVIT_TEST={self.said}"
        words = [sys.executable, ROOT / "scripts" / "supervise.py", "--logs", logs, "--backoff", "0.1", *options, "--"]
        name, _, value = self.mark.partition("=")
        self.process = subprocess.Popen(
            [str(w) for w in [*(words if supervised else []), *command]],
            stdout=self.said.open("w"),
            stderr=subprocess.STDOUT,
            env={**msrun_env(env), name: value},
        )

    def end(self, seconds: float = 150) -> tuple[int, str]:
        """(exit code, what it said); fails when it takes longer or leaves a process."""
        try:
            self.process.wait(seconds)
        finally:
            self.process.kill()
        assert not self.processes(), "processes of the job live on"
        return self.process.returncode, self.said.read_text()

    def processes(self) -> dict[int, dict[str, str]]:
        """Environment of every process of the job but the supervisor, by process id."""
        return {pid: env for pid, env in marked(self.mark).items() if pid != self.process.pid}

    def log(self) -> str:
        """What the supervisor wrote so far."""
        path = self.logs / "supervise.log"
        return path.read_text() if path.exists() else ""

    def people(self) -> dict[str, dict]:
        """What the ranks of the running attempt say."""
        return people(self.mark)
