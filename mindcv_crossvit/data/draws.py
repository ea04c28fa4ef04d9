"""Every random draw of a run, as a function of what it is for, never of the number of workers, ranks or restarts."""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """What a stream of random numbers is for; the numbers are part of a run's identity."""

    ORDER = 0
    CROP = 1
    FLIP = 2
    AFFINE = 3
    RAND_AUGMENT = 4
    ERASE = 5
    MIX = 6
    DROP_PATH = 7
    SPLIT = 8


def stream(seed: int, purpose: Purpose, epoch: int = 0, index: int = 0, copy: int = 0) -> np.random.Generator:
    """An independent stream (Philox) for one purpose.

    epoch: the epoch, or the update for draws made once an update; below 2**32.
    index: the picture, or the group within an epoch; below 2**40.
    copy: which of the picture's repetitions in an epoch; below 2**16.
    """
    key = np.array([(seed << 32) | epoch, (index << 24) | (copy << 8) | purpose], np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def drop_path_scale(seed: int, update: int, rates: tuple[float, ...], global_batch: int) -> np.ndarray:
    """What each sample's branches are multiplied with in one update: 0 or 1/(1 - rate), [draws, global_batch]."""
    draws = stream(seed, Purpose.DROP_PATH, update).random((len(rates), global_batch), np.float32)
    rate = np.asarray(rates, np.float32)[:, None]
    return (draws >= rate) / (1 - rate)
