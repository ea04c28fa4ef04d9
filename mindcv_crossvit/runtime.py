"""The only file that touches MindSpore's context, ranks and collectives.

Collectives here keep to what every backend has: AllGather of int32 and float32, AllReduce of float32, Broadcast.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import presence
from .compile import cache_folder
from .errors import MachineError, Problem, UserError
from .versions import code_hash, versions

KEEP, PLACE = "MS_COMPILER_CACHE_ENABLE", "MS_COMPILER_CACHE_PATH"
"""MindSpore's variables for graphs that are kept between runs."""


def launched_world() -> int | None:
    """How many ranks msrun started, None when it did not; known before MindSpore is imported."""
    if "MS_SCHED_HOST" not in os.environ or "MS_WORKER_NUM" not in os.environ:
        return None
    return int(os.environ["MS_WORKER_NUM"])


def launched_rank() -> int:
    """This process's rank under msrun, else 0; known before MindSpore is imported."""
    return int(os.environ.get("RANK_ID", "0")) if launched_world() else 0


def is_scheduler() -> bool:
    """msrun starts one process that only introduces the others; it runs the same script."""
    return os.environ.get("MS_ROLE") == "MS_SCHED"


def planned_world(distribute: bool | None) -> int:
    """Ranks a run will have. Raises UserError when the option and the launcher contradict each other."""
    launched = launched_world()
    if distribute and launched is None:
        raise UserError("run.distribute is true but msrun did not start this: msrun --worker_num 8 python train.py ...")
    if distribute is False and launched and launched > 1:
        raise UserError(
            f"run.distribute is false but msrun started {launched} workers: start python train.py without msrun"
        )
    return launched or 1


def resolve_device(device: str) -> str:
    """`CPU` or `Ascend`; auto takes Ascend where the driver shows a card."""
    if device != "auto":
        return device
    return "Ascend" if any(Path("/dev").glob("davinci[0-9]*")) else "CPU"


def seen_devices() -> tuple[int, int]:
    """(Ascend cards, CPUs) that MindSpore can use."""
    import mindspore as ms

    counts = [ms.hal.device_count(name) if ms.hal.is_available(name) else 0 for name in ("Ascend", "CPU")]
    return counts[0], counts[1]


def device_target() -> str:
    """The device MindSpore is set to."""
    import mindspore as ms

    return ms.get_context("device_target")


def seed_everything(seed: int) -> None:
    """Seeds MindSpore's own generators; only models that are not ours draw from them."""
    import mindspore as ms

    ms.set_seed(seed)


def all_reduce() -> Any:
    """The primitive that adds a float32 tensor up over all ranks; its gradient adds up the gradients."""
    from mindspore import ops

    return ops.AllReduce()


@dataclass(frozen=True)
class Runtime:
    """This process's place in the run.

    graphs: where MindSpore was asked to keep compiled graphs between runs, None for nowhere.
    """

    device: str
    rank: int = 0
    world: int = 1
    graphs: Path | None = None

    @property
    def is_main(self) -> bool:
        """Rank 0 writes files and speaks."""
        return self.rank == 0

    def keep_graphs(self, **facts: Any) -> None:
        """Keeps what is compiled from here on where MindSpore was asked to; call it before anything is compiled.

        MindSpore 2.10 knows a kept graph by its number in the order of compiling and by the scripts' text only: where a
        constant differs or a function is compiled first that was second, it runs the old graph, without a word. So each
        set of facts has a folder of its own. facts: plain values, all that the graphs and their order follow from,
        besides the versions and the suite's own code.
        """
        if self.graphs is None:
            return
        if KEEP in os.environ:  # for a second model in one process: MindSpore stays with the first one's folder
            os.environ[KEEP] = "0"
            return
        facts |= {"versions": versions(), "code": code_hash(), "kernels": str(cache_folder())}
        facts |= {"device": self.device, "world": self.world}
        key = hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=8).hexdigest()
        os.environ[KEEP], os.environ[PLACE] = "1", str(self.graphs / key)

    def gather(self, values: np.ndarray) -> np.ndarray:
        """values of every rank, [world, ...]; int32 or float32 of one shape, at least one dimension."""
        if values.dtype not in (np.int32, np.float32):
            raise TypeError(f"gather takes int32 or float32, not {values.dtype}")
        if self.world == 1:
            return values[None]
        from mindspore import Tensor, ops

        with presence.meeting():
            return ops.AllGather()(Tensor(values)).asnumpy().reshape(self.world, *values.shape)

    def texts(self, mine: str) -> list[str]:
        """What every rank has to say, by rank; one small collective when none has anything."""
        raw = np.frombuffer(mine.encode(errors="backslashreplace"), np.uint8)
        sizes = self.gather(np.array([len(raw)], np.int32))[:, 0]
        if not sizes.any():
            return [""] * self.world
        padded = np.zeros(-(-int(sizes.max()) // 1024) * 1024, np.int32)  # few lengths: each is compiled for
        padded[: len(raw)] = raw
        rows = self.gather(padded)
        return [row[:size].astype(np.uint8).tobytes().decode() for row, size in zip(rows, sizes, strict=True)]

    def agree(self, problem: Problem | None) -> None:
        """Raises an error on every rank when one of them has a problem, with what each says.

        A MachineError when one of them is one, else a UserError.
        """
        texts = self.texts(f"{problem.code}\n{problem}" if problem else "")
        if said := [text.splitlines() for text in texts if text]:
            kind = MachineError if str(MachineError.code) in (lines[0] for lines in said) else UserError
            raise kind(dict.fromkeys(line for lines in said for line in lines[1:]))

    def agree_on(self, facts: Mapping[str, Any]) -> None:
        """Compares plain values over the ranks. Raises UserError on all of them, naming what differs from rank 0's."""
        text = json.dumps(facts)
        if len(set(self.gather(np.array([_checksum(text.encode())], np.int32))[:, 0])) == 1:
            return
        first, *others = [json.loads(said) for said in self.texts(text)]
        problems = []
        for key in {**first, **{k: None for other in others for k in other}}:
            odd = [rank for rank, other in enumerate(others, 1) if other.get(key) != first.get(key)]
            if odd:
                more = f" (and differs on {len(odd) - 1} more ranks)" if len(odd) > 1 else ""
                values = f"{first.get(key)} on rank 0, {others[odd[0] - 1].get(key)} on rank {odd[0]}"
                problems.append(f"the ranks do not begin alike: {key} is {values}{more}")
        raise UserError(problems)

    def sums(self) -> bool:
        """Whether an all-reduce over the ranks adds up."""
        if self.world == 1:
            return True
        from mindspore import Tensor, ops

        with presence.meeting():
            total = ops.AllReduce()(Tensor(np.full(1000, self.rank + 1, np.float32))).asnumpy()
        return bool((total == self.world * (self.world + 1) / 2).all())

    def broadcast(self, parameters: Iterable) -> None:
        """Gives every rank the parameters of rank 0."""
        if self.world == 1:
            return
        from mindspore import ops

        broadcast = ops.Broadcast(0)
        with presence.meeting():
            for parameter in parameters:
                parameter.set_data(broadcast((parameter,))[0])

    def check_same(self, parameters: Iterable, when: str) -> None:
        """Compares a checksum of each parameter over the ranks. Raises RuntimeError naming those that differ."""
        if self.world == 1:
            return
        parameters = list(parameters)
        sums = np.array([_checksum(np.ascontiguousarray(p.asnumpy()).tobytes()) for p in parameters], np.int32)
        everyone = self.gather(sums)
        differing = [p.name for i, p in enumerate(parameters) if len(set(everyone[:, i])) > 1]
        if differing:
            raise RuntimeError(
                f"{when}: the ranks' parameters differ, first {differing[0]} ({len(differing)} of {len(parameters)})"
            )


def _checksum(values: bytes) -> int:
    return zlib.crc32(values) - 2**31


def start(device: str) -> Runtime:
    """Sets graph mode and the device, and joins the other ranks under msrun.

    The scheduler process of msrun ends in here when the run is over. Raises UserError when the device is not there.
    """
    presence.mark("loading MindSpore")
    graphs = Path(os.environ.get(PLACE, ".")) if os.environ.pop(KEEP, "") == "1" else None  # see keep_graphs
    import mindspore as ms

    ms.set_context(mode=ms.GRAPH_MODE)
    try:
        ms.set_device(resolve_device(device))
    except Exception as error:  # MindSpore raises several kinds for a missing driver or library
        raise UserError(f"run.device: {device} is not usable here: {str(error).splitlines()[0]}") from error
    if not launched_world():
        return Runtime(resolve_device(device), graphs=graphs)
    from mindspore.communication import get_group_size, get_rank, init

    presence.mark(presence.SERVING if is_scheduler() else "joining")
    init("hccl" if resolve_device(device) == "Ascend" else "mccl")
    if is_scheduler():
        raise SystemExit(0)
    presence.mark("preparing")
    return Runtime(resolve_device(device), get_rank(), get_group_size(), graphs)
