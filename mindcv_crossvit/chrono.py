"""What a run costs: pictures per second, the share of time spent waiting for data."""

from __future__ import annotations

import time


class Chrono:
    """Counts pictures and seconds of training, and those of them spent waiting for data.

    The first update, which compiles, evaluating and saving are left out.
    """

    def __init__(self) -> None:
        self.seconds, self.waited, self.images, self.compile_seconds, self._mark = 0.0, 0.0, 0, 0.0, 0.0

    def start(self) -> None:
        """An update begins."""
        self._mark = time.perf_counter()

    def stop(self, images: int, waited: float = 0.0) -> None:
        """`images` pictures were trained on since start, after `waited` seconds for data."""
        elapsed = time.perf_counter() - self._mark
        if not self.compile_seconds:
            self.compile_seconds = elapsed
            return
        self.seconds += elapsed
        self.waited += waited
        self.images += images

    @property
    def rate(self) -> float:
        """Pictures per second."""
        return self.images / self.seconds if self.seconds else 0.0

    @property
    def wait_share(self) -> float:
        """Share of the time spent waiting for data, 0 to 1."""
        return self.waited / self.seconds if self.seconds else 0.0


def duration(seconds: float) -> str:
    """4210 -> '1 h 10 m'."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} m" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} m"
