"""Runs benchmark workers (worker.py) in turn, so that a machine whose speed drifts slows all of them alike."""

import os
import statistics
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import psutil

ENVIRONMENT = dict(os.environ)
"""Of every worker: as it is before anything else is imported. MindSpore adds variables for itself to the process that
imports it, with which PyTorch uses one thread."""


@dataclass
class Result:
    """Of one worker. seconds: of each iteration. cpu: CPU seconds of an iteration, its child processes included.

    peak: resident memory in MB. ready: seconds from the start to the end of the first iteration.
    """

    ready: float
    peak: int = 0
    cpu: float = 0.0
    seconds: list[float] = field(default_factory=list)

    @property
    def best(self) -> float:
        """The fastest iteration, in seconds."""
        return min(self.seconds)

    @property
    def median(self) -> float:
        """The median iteration, in seconds."""
        return statistics.median(self.seconds)


def alternate(commands: list[list[str]], rounds: int, count: int, folder: Path) -> list[Result]:
    """Starts all workers, asks each in turn for `count` iterations, `rounds` times. Raises RuntimeError when one dies.

    folder: where they run.
    """
    workers = [_Worker(command, folder) for command in commands]
    try:
        for _ in range(rounds):
            for worker in workers:
                worker.ask(count)
        for worker in workers:
            worker.result.cpu /= rounds * count
        return [worker.result for worker in workers]
    finally:
        for worker in workers:
            worker.end()


class _Worker:
    def __init__(self, command: list[str], folder: Path):
        self.command = command
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True, cwd=folder, env=ENVIRONMENT
        )
        self.result = Result(float(self._line(lambda words: words[:1] == ["ready"])[1]))

    def ask(self, count: int) -> None:
        before = self._cpu()
        assert self.process.stdin
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        *seconds, peak = self._line(lambda words: len(words) == count + 1 and words[-1].isdigit())
        self.result.seconds += [float(s) for s in seconds]
        self.result.peak = max(self.result.peak, int(peak))
        self.result.cpu += self._cpu() - before

    def _line(self, wanted) -> list[str]:
        assert self.process.stdout
        for line in self.process.stdout:
            if wanted(words := line.split()):
                return words
        raise RuntimeError(f"ended too early: {' '.join(self.command)}")

    def _cpu(self) -> float:
        whole = psutil.Process(self.process.pid)
        return sum(sum(p.cpu_times()[:2]) for p in [whole, *whole.children(recursive=True)])

    def end(self) -> None:
        if self.process.poll() is None and self.process.stdin:
            self.process.stdin.write("q\n")
            self.process.stdin.flush()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
