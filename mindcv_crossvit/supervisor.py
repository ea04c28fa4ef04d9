"""Runs a job of one or more ranks, says which rank failed and why, and starts it again from its last whole checkpoint.

It watches what the ranks say (presence) and their processes; it needs neither MindSpore nor the ranks' help to end
them. On several machines each has its own, which watches the ranks there and hears of the others (peers). Linux only.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from . import presence
from .errors import STOPPED, UserError
from .job import Job
from .peers import News, Peers
from .presence import SCHEDULER, Presence
from .process import LAUNCHER, Status, StopCount, become_reaper, die_with_parent, end_descendants, how_ended, status
from .verdict import FAILED, FINAL, Limits, Outcome, Scene, judge, waiting

LAUNCH_LOG = "launch.log"
_POLL = 0.1
_SAY_EVERY = 60.0
_HEAR_EVERY = 1.0
Say = Callable[[str], None]


def supervise(job: Job, limits: Limits, logs: Path) -> int:
    """Runs a job until it ends, is stopped or has failed too often; returns its exit code, FAILED for the last.

    logs: gets supervise.log, and a folder per attempt with the logs of msrun and the ranks; on several machines each
    has a folder of its own there. Raises UserError when the job cannot be started.
    """
    job.check()
    place = logs / f"node-{job.node}" if job.others else logs
    place.mkdir(parents=True, exist_ok=True)
    say, stop, folder = _speaker(place / "supervise.log"), StopCount(), None
    peers = Peers(logs, job.node, job.others)
    become_reaper()
    number = 0
    while True:
        number += 1
        peers.tell(News(number))
        attempt = Attempt(job, limits, _free(place), say, stop, peers, number)
        outcome = attempt.run(folder)
        folder = attempt.folder or folder
        for name, cause in outcome.causes:
            log = attempt.log_of(name)
            say(f"{'ended' if outcome.code in FINAL else 'FAILED'}: {name} {cause}{f' (log: {log})' if log else ''}")
        last = outcome.code in FINAL or not outcome.again or stop.asked or number > limits.restarts
        peers.tell(News(number, outcome.code, _sentence(outcome), again=not last))
        if last:
            return _farewell(outcome, stop, number, say, place)
        seconds = min(limits.backoff * 2 ** (number - 1), 300)
        say(f"restart {number} of {limits.restarts} in {seconds:g} s")
        stop.wait(seconds)
        if stop.asked:
            peers.tell(News(number, STOPPED, "stopped on request", again=False))
            return STOPPED


def _sentence(outcome: Outcome) -> str:
    return " ".join(outcome.causes[0]) if outcome.causes else ""


def _farewell(outcome: Outcome, stop: StopCount, attempts: int, say: Say, logs: Path) -> int:
    """The exit code of the last attempt, and why it is the last."""
    if outcome.code in FINAL:
        return outcome.code
    if stop.asked:
        return STOPPED
    if outcome.again:
        say(f"given up after {attempts - 1} restarts; all logs: {logs}")
    else:
        say(f"not started again: the other machines do not start it; all logs: {logs}")
    return FAILED


class Attempt:
    """One start of the job, the `number`-th, watched to its end. folder: the run folder, once rank 0 has chosen it."""

    def __init__(self, job: Job, limits: Limits, place: Path, say: Say, stop: StopCount, peers: Peers, number: int):
        self.job, self.limits, self.place, self.say, self.stop = job, limits, place, say, stop
        self.peers, self.number = peers, number
        self.people: dict[str, Presence] = {}
        self.folder: str | None = None
        self._news: dict[int, News] = {}
        self._began = self._said = self._heard = time.monotonic()
        self._ended: float | None = None
        self._deaths: dict[str, str] = {}
        self._passed_on = 0

    def run(self, folder: str | None) -> Outcome:
        """Starts it, going on with the run in `folder`, and watches it; leaves none of its processes."""
        self.place.mkdir(parents=True)
        try:
            self.job.check()
        except UserError as error:  # another job has taken the port meanwhile; it may give it back
            return Outcome(FAILED, (("job", str(error)),))
        command = self.job.command(self.place, folder)
        self.say(f"runs {shlex.join(command)}")
        with tempfile.TemporaryDirectory(prefix="crossvit-presence-") as presences:
            child = _start(command, presences)
            copier = threading.Thread(target=_copy, args=(child, self.place / LAUNCH_LOG), daemon=True)
            copier.start()
            try:
                while True:
                    time.sleep(_POLL)
                    launcher = child.poll()  # before the ranks are asked: they end with it
                    if outcome := self._look(Path(presences), launcher):
                        return outcome
            finally:
                end_descendants(child.pid, [p.pid for p in self.people.values()])
                child.poll()
                copier.join(5)

    def log_of(self, name: str) -> Path | None:
        """Where a process's output is; None for what is no process here."""
        launched = name in (*self.job.ranks, SCHEDULER, "msrun")
        return self.job.log_of(name, self.place) or (self.place / LAUNCH_LOG if launched else None)

    def _look(self, presences: Path, launcher: int | None) -> Outcome | None:
        statuses = {name: status(p.pid) for name, p in self.people.items()}  # before what they said last
        self.people |= presence.read(presences)
        statuses |= {name: status(p.pid) for name, p in self.people.items() if name not in statuses}
        self.folder = next((p.folder for p in self.people.values() if p.folder), None)
        statuses, msrun = self._blamed(statuses), self.job.msrun is not None
        now = time.monotonic()
        if now - self._heard > _HEAR_EVERY:
            self._heard, self._news = now, self.peers.hear()
        told = (self.number, self.job.others, self._news)
        scene = Scene(self.job.ranks, self.people, statuses, msrun, launcher, self._began, now, *told)
        if outcome := judge(scene, self.limits):
            if self._ended is None:  # at once: the ranks of other machines wait for those here
                self._ended = scene.now
                self.peers.tell(News(self.number, outcome.code, _sentence(outcome), outcome.code not in FINAL))
            return outcome if scene.now - self._ended > _patience(scene, outcome) else None
        self._pass_on(scene)
        if scene.now - self._said > _SAY_EVERY:
            self._said = scene.now
            for line in waiting(scene, self.log_of):
                self.say(line)
        return None

    def _blamed(self, statuses: dict[str, Status]) -> dict[str, Status]:
        """Deaths without a last word: only those seen first count, since msrun soon kills the other ranks."""
        dead = {n: s.ended for n, s in statuses.items() if s.ended and self.people[n].code is None}
        if dead and not self._deaths:
            path = self.place / LAUNCH_LOG
            log = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
            said = {n: re.search(rf"process {self.people[n].pid} exit .*code: (-?\d+)", log) for n in dead}
            self._deaths = {n: how_ended(int(match[1])) for n, match in said.items() if match} or dead
        return {n: Status(self._deaths.get(n, ""), s.stopped) if n in dead else s for n, s in statuses.items()}

    def _pass_on(self, scene: Scene) -> None:
        """Passes a request to stop to the ranks; those that cannot save yet, and all after a second one, are ended."""
        if self._passed_on == self.stop.asked:
            return
        early = len(scene.ranks) < len(scene.names) or any(
            p.phase in (*presence.BEFORE_JOINING, "preparing") for p in scene.ranks
        )
        self.say("asked to stop: " + ("nothing to save yet" if early else "the ranks finish this update and save"))
        for p in scene.ranks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(p.pid, signal.SIGKILL if early or self.stop.asked > 1 else signal.SIGTERM)
        self._passed_on = self.stop.asked


def _patience(scene: Scene, outcome: Outcome) -> float:
    """Seconds to wait with an outcome: ranks that end get time to end well; of a killed one the cause may show yet."""
    if outcome.code in FINAL and not outcome.again:  # of another machine: ranks that met its own will say the same
        met = any(p.phase not in presence.BEFORE_JOINING for p in scene.ranks)
        return 20.0 if met else 3.0
    if outcome.code == FAILED and scene.others and not any(w.code for w in scene.news.values()):
        return 3.0  # the cause may be there
    if all(scene.statuses[p.name].ended for p in scene.ranks) or not any(p.code is not None for p in scene.ranks):
        return _POLL / 2
    return 20.0 if all(p.code is not None for p in scene.ranks) else 1.0


def _start(command: list[str], presences: str) -> subprocess.Popen[bytes]:
    supervisor = os.getpid()

    def prepare() -> None:
        die_with_parent(supervisor)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # some send it to every process; the ranks get it from here
        os.environ[LAUNCHER] = str(os.getpid())

    os.environ[presence.FOLDER] = presences
    try:
        return subprocess.Popen(
            command,
            preexec_fn=prepare,
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
    except OSError as error:
        raise UserError(f"{command[0]}: cannot be started: {error}") from error


def _copy(child: subprocess.Popen[bytes], path: Path) -> None:
    """What the job says, to the terminal and to a file, whether or not they take it."""
    assert child.stdout is not None
    with path.open("ab") as file:
        while piece := os.read(child.stdout.fileno(), 65536):
            for stream in (file, sys.stdout.buffer):
                with contextlib.suppress(OSError):
                    stream.write(piece)
                    stream.flush()


def _speaker(path: Path) -> Say:
    def say(line: str) -> None:
        with contextlib.suppress(OSError):
            print(f"supervise: {line}", flush=True)
            with path.open("a", encoding="utf-8") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {line}\n")

    return say


def _free(logs: Path) -> Path:
    number = 1
    while (logs / f"attempt-{number}").exists():
        number += 1
    return logs / f"attempt-{number}"
