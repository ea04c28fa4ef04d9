"""Whether a watched job has ended or hangs, and who is the cause: from what its ranks and the other machines say, and
from what /proc shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from . import presence
from .errors import DIVERGED, NOT_SAVED, STOPPED, USER_ERROR
from .peers import News
from .presence import Presence
from .process import Status, how_ended

FAILED = 1
NODE = "node "
"""How the name of another machine begins where it is the cause."""
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
    """How an attempt ended: a rank's exit code, or FAILED; and why, (who, sentence) each.

    again: whether another attempt may go better.
    """

    code: int
    causes: tuple[tuple[str, str], ...] = ()
    again: bool = True


@dataclass(frozen=True)
class Scene:
    """What is known at one moment.

    names: the ranks there must be. people: what they, and the scheduler, say. msrun: whether it started them.
    launcher: exit code of msrun, or of the only rank; None while it runs. began, now: seconds of time.monotonic.
    attempt: which one it is, from 1. others: the other machines by number, see Job; news: what was heard of them.
    """

    names: Sequence[str]
    people: Mapping[str, Presence]
    statuses: Mapping[str, Status]
    msrun: bool
    launcher: int | None
    began: float
    now: float
    attempt: int = 1
    others: Mapping[int, str] = field(default_factory=dict)
    news: Mapping[int, News] = field(default_factory=dict)

    @property
    def ranks(self) -> list[Presence]:
        """The ranks that have said something."""
        return [self.people[n] for n in self.names if n in self.people]

    @property
    def stopped(self) -> list[Presence]:
        """The processes, the scheduler among them, that exist and do not run."""
        return [p for n, p in self.people.items() if p.code is None and self.statuses[n].stopped]


def judge(scene: Scene, limits: Limits) -> Outcome | None:
    """The outcome, None while the job goes on."""
    for rule in (_all_well, _by_word, _by_killed_launcher, _by_death, _by_launcher, _by_peers):
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
    return Outcome(code, (*causes, *(_beside(scene) if code == FAILED else ())))


def _by_killed_launcher(scene: Scene) -> Outcome | None:
    return _by_launcher(scene) if scene.launcher is not None and scene.launcher < 0 else None


def _by_launcher(scene: Scene) -> Outcome | None:
    if scene.launcher is None:
        return None
    if scene.launcher == 0 and not scene.people:  # a command that says nothing of itself: its code is all there is
        return Outcome(0)
    if not scene.msrun:
        return Outcome(scene.launcher if scene.launcher in FINAL else FAILED, (("rank 0", how_ended(scene.launcher)),))
    left = [n for n in scene.names if n not in scene.people or scene.people[n].code is None]
    return Outcome(FAILED, (("msrun", f"{how_ended(scene.launcher)}; left alone were {', '.join(left)}"),))


def _by_death(scene: Scene) -> Outcome | None:
    gone = [(n, scene.statuses[n].ended) for n, p in scene.people.items() if p.code is None and scene.statuses[n].ended]
    return Outcome(FAILED, (*gone, *_beside(scene))) if gone else None


def _by_peers(scene: Scene) -> Outcome | None:
    """Another machine has failed in this attempt, or has ended for good."""
    for_good = {n: w for n, w in scene.news.items() if w.code and not w.again}
    ended = {n: w for n, w in scene.news.items() if w.code and w.attempt == scene.attempt}
    failed = ended | {n: w for n, w in scene.news.items() if w.attempt > scene.attempt}
    if for_good:
        code = next((c for c in FINAL if any(w.code == c for w in for_good.values())), FAILED)
        return Outcome(code, _heard(for_good), again=False)
    return Outcome(FAILED, _heard(failed)) if failed else None


def _heard(news: Mapping[int, News]) -> tuple[tuple[str, str], ...]:
    return tuple((f"{NODE}{n}", f"has failed: {w.cause}" if w.cause else "has started again") for n, w in news.items())


def _by_time(scene: Scene, limits: Limits) -> Outcome | None:
    if scene.now - scene.began > limits.start and (absent := [n for n in scene.names if n not in scene.people]):
        hint = "" if scene.people else "; what is watched must say where it is, see errors.run_main"
        text = f"has not started after {scene.now - scene.began:.0f} s{hint}"
        return Outcome(FAILED, tuple((n, text) for n in absent))
    running = [p for p in scene.ranks if p.code is None]
    if not any(scene.now - p.since > limit for p, limit in _clocks(scene, running, limits)):
        return None
    if scene.others and not scene.stopped and (outcome := _by_others(scene, running)):
        return outcome
    suspects = _suspects(scene, running)
    causes = [(p.name, _hang(scene, p)) for p in suspects]
    rest = ", ".join(f"{p.name} {p.phase} for {scene.now - p.since:.0f} s" for p in running if p not in suspects)
    return Outcome(FAILED, (*causes, *([("job", f"the others wait: {rest}")] if rest else [])))


def _clocks(scene: Scene, running: Sequence[Presence], limits: Limits) -> list[tuple[Presence, float]]:
    """Whose time counts, and its limit: not that of ranks that wait for another one here, which may well compile."""
    active = [(p, limits.of(p.phase)) for p in running if not p.waits]
    elsewhere = max(limits.compile, limits.hang) if scene.others else 0.0
    return active or [(p, max(limits.of(p.phase), elsewhere)) for p in running]


def _by_others(scene: Scene, running: Sequence[Presence]) -> Outcome | None:
    """The ranks here have waited too long, all of them, and those of other machines are missing."""
    seconds = scene.now - max(p.since for p in running)
    if all(p.phase == "joining" for p in running):
        causes = tuple((who, f"did not join: the ranks here have waited {seconds:.0f} s") for who in missing(scene))
        return Outcome(FAILED, causes, again=not _silent(scene))
    if all(p.waits for p in running):
        said = tuple((who, f"keep the ranks here waiting, {seconds:.0f} s so far") for who in scene.others.values())
        return Outcome(FAILED, said)
    return None


def _silent(scene: Scene) -> list[int]:
    """The other machines that nothing was heard of, or that have ended for good."""
    return [n for n in scene.others if n not in scene.news or not scene.news[n].again]


def missing(scene: Scene) -> list[str]:
    """The ranks elsewhere that may not have joined: those of machines nothing was heard of, else all."""
    return [scene.others[n] for n in _silent(scene) or scene.others]


def _suspects(scene: Scene, running: Sequence[Presence]) -> list[Presence]:
    """Those the others wait for: stopped processes, else the ranks that have come the least far.

    A stopped scheduler keeps ranks from joining, and does not hinder those that have.
    """
    joining = all(p.phase in presence.BEFORE_JOINING for p in running)
    if any(p in running for p in scene.stopped) or (scene.stopped and joining):
        return scene.stopped
    order = [*presence.BEFORE_JOINING, "preparing", "waiting for data", "compiling", "computing"]

    def place(p: Presence) -> tuple[int, bool, int]:
        return p.update or 0, p.waits, order.index(p.phase) if p.phase in order else len(order)

    return [*scene.stopped, *(p for p in running if place(p) == min(map(place, running)))]


def _hang(scene: Scene, p: Presence) -> str:
    stopped = ", its process is stopped" if scene.statuses[p.name].stopped else ""
    seconds = f"{scene.now - p.since:.0f} s{stopped}"
    if p.phase in presence.BEFORE_JOINING:
        return f"has not joined the others: {p.phase} for {seconds}"
    return f"hangs: {p.phase}{f' in update {p.update}' if p.update else ''} for {seconds}"


def _beside(scene: Scene) -> list[tuple[str, str]]:
    """What may have made the ranks fail: stopped processes, other machines that have not heard it from others."""
    failed = {n: w for n, w in scene.news.items() if w.code and w.attempt == scene.attempt}
    first = {n: w for n, w in failed.items() if not w.cause.startswith(NODE)}
    return [*((p.name, f"does not run: its process {p.pid} is stopped") for p in scene.stopped), *_heard(first)]


def waiting(scene: Scene, log_of: Callable[[str], object]) -> list[str]:
    """A line about each rank that has not joined, or compiles, and about what is stopped or missing elsewhere."""
    lines = [f"{p.name}: its process {p.pid} is stopped" for p in scene.stopped]
    if scene.others and len(scene.ranks) == len(scene.names) and all(p.phase == "joining" for p in scene.ranks):
        lines.append(f"of the other machines have not joined: {', '.join(missing(scene))}")
    for name in scene.names:
        p = scene.people.get(name)
        if p is None or p.phase in (*presence.BEFORE_JOINING, "compiling"):
            what = f"{p.phase} for {scene.now - p.since:.0f} s" if p else "has not started"
            lines.append(f"{name}: {what} (log: {log_of(name)})")
    return lines
