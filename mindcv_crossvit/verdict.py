"""Whether a watched job has ended or hangs, and who is the cause: from what its ranks say and what /proc shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from . import presence
from .errors import DIVERGED, NOT_SAVED, STOPPED, USER_ERROR
from .presence import Presence
from .process import Status, how_ended

FAILED = 1
FINAL = (USER_ERROR, DIVERGED, NOT_SAVED, STOPPED, 0)
"""Exit codes of a rank that a restart would not change, the weightiest first."""


@dataclass(frozen=True)
class Limits:
    """Seconds a rank may be in one phase, and how often a failed job is started again.

    start: until it has joined the others. compile: the first update, or the first batch of a validation. hang: any
    other phase. backoff: before the first restart, doubled before each further one, at most 300.
    """

    restarts: int = 0
    backoff: float = 5.0
    start: float = 300.0
    compile: float = 3600.0
    hang: float = 900.0

    def of(self, phase: str) -> float:
        """The limit of a phase."""
        if phase in presence.BEFORE_JOINING:
            return self.start
        return self.compile if phase == "compiling" else self.hang


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended: a rank's exit code, or FAILED; and why, (process or `job`, sentence) each."""

    code: int
    causes: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Scene:
    """What is known at one moment.

    names: the ranks there must be. people: what they, and the scheduler, say. msrun: whether it started them.
    launcher: exit code of msrun, or of the only rank; None while it runs. began, now: seconds of time.monotonic.
    """

    names: Sequence[str]
    people: Mapping[str, Presence]
    statuses: Mapping[str, Status]
    msrun: bool
    launcher: int | None
    began: float
    now: float

    @property
    def ranks(self) -> list[Presence]:
        """The ranks that have said something."""
        return [self.people[n] for n in self.names if n in self.people]


def judge(scene: Scene, limits: Limits) -> Outcome | None:
    """The outcome, None while the job goes on."""
    for rule in (_all_well, _by_word, _by_killed_launcher, _by_death, _by_launcher):
        if outcome := rule(scene):
            return outcome
    return _by_time(scene, limits)


def _all_well(scene: Scene) -> Outcome | None:
    well = len(scene.ranks) == len(scene.names) and all(p.code == 0 for p in scene.ranks)
    return Outcome(0) if well else None


def _by_word(scene: Scene) -> Outcome | None:
    ended = [p for p in scene.people.values() if p.code]
    if not ended:
        return None
    code = next((c for c in FINAL if any(p.code == c for p in ended)), FAILED)
    told = [p for p in ended if code == FAILED or p.code == code]
    causes = [(p.name, f"ended with code {p.code}" + (f": {p.cause}" if p.cause else "")) for p in told]
    return Outcome(code, (*causes, *(_frozen(scene) if code == FAILED else ())))


def _by_killed_launcher(scene: Scene) -> Outcome | None:
    return _by_launcher(scene) if scene.launcher is not None and scene.launcher < 0 else None


def _by_launcher(scene: Scene) -> Outcome | None:
    if scene.launcher is None:
        return None
    if not scene.msrun:
        return Outcome(scene.launcher if scene.launcher in FINAL else FAILED, (("rank 0", how_ended(scene.launcher)),))
    left = [n for n in scene.names if n not in scene.people or scene.people[n].code is None]
    return Outcome(FAILED, (("msrun", f"{how_ended(scene.launcher)}; left alone were {', '.join(left)}"),))


def _by_death(scene: Scene) -> Outcome | None:
    gone = [(n, scene.statuses[n].ended) for n, p in scene.people.items() if p.code is None and scene.statuses[n].ended]
    return Outcome(FAILED, (*gone, *_frozen(scene))) if gone else None


def _by_time(scene: Scene, limits: Limits) -> Outcome | None:
    if scene.now - scene.began > limits.start and (absent := [n for n in scene.names if n not in scene.people]):
        return Outcome(FAILED, tuple((n, f"has not started after {scene.now - scene.began:.0f} s") for n in absent))
    running = [p for p in scene.ranks if p.code is None]
    if not any(scene.now - p.since > limits.of(p.phase) for p in running):
        return None
    suspects = _suspects(scene, running)
    causes = [(p.name, _hang(scene, p)) for p in suspects]
    rest = ", ".join(f"{p.name} {p.phase} for {scene.now - p.since:.0f} s" for p in running if p not in suspects)
    return Outcome(FAILED, (*causes, *([("job", f"the others wait: {rest}")] if rest else [])))


def _suspects(scene: Scene, running: Sequence[Presence]) -> list[Presence]:
    """Those the others wait for: stopped processes, else the ranks that have come the least far."""
    order = [*presence.BEFORE_JOINING, "preparing", "waiting for data", "compiling", "computing"]

    def place(p: Presence) -> tuple[int, int]:
        return p.update or 0, order.index(p.phase) if p.phase in order else len(order)

    frozen = [p for p in running if scene.statuses[p.name].stopped]
    return frozen or [p for p in running if place(p) == min(map(place, running))]


def _hang(scene: Scene, p: Presence) -> str:
    stopped = ", its process is stopped" if scene.statuses[p.name].stopped else ""
    seconds = f"{scene.now - p.since:.0f} s{stopped}"
    if p.phase in presence.BEFORE_JOINING:
        return f"has not joined the others: {p.phase} for {seconds}"
    return f"hangs: {p.phase}{f' in update {p.update}' if p.update else ''} for {seconds}"


def _frozen(scene: Scene) -> list[tuple[str, str]]:
    return [
        (n, f"does not run: its process {p.pid} is stopped")
        for n, p in scene.people.items()
        if p.code is None and scene.statuses[n].stopped
    ]


def waiting(scene: Scene, log_of: Callable[[str], object]) -> list[str]:
    """A line about each rank that has not joined, or compiles."""
    lines = []
    for name in scene.names:
        p = scene.people.get(name)
        if p is None or p.phase in (*presence.BEFORE_JOINING, "compiling"):
            what = f"{p.phase} for {scene.now - p.since:.0f} s" if p else "has not started"
            lines.append(f"{name}: {what} (log: {log_of(name)})")
    return lines
