"""Draw random numbers that depend on a key and on nothing else."""

from __future__ import annotations

import hashlib
import random
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch.utils.data import get_worker_info


def derive_seeds(*key: int) -> tuple[int, int, int]:
    """Derive three independent 64-bit seeds from a key of integers, the same on every machine."""
    digest = hashlib.blake2b(",".join(map(str, key)).encode(), digest_size=24).digest()
    return struct.unpack("<3Q", digest)


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Run the body with `random`, numpy's and torch's CPU generators seeded from `key`.

    Afterwards the caller's states are back: decoding in the main process must not disturb the training's
    random numbers. A loader's worker has no caller to protect and saves the 0.1 ms this costs.
    Generators of accelerators are not touched.
    """
    torch_rng = torch.random.default_generator
    in_worker = get_worker_info() is not None
    if not in_worker:
        states = random.getstate(), np.random.get_state(), torch_rng.get_state()
    for_random, for_numpy, for_torch = derive_seeds(*key)
    random.seed(for_random)
    np.random.seed(for_numpy & 0xFFFFFFFF)
    torch_rng.manual_seed(for_torch)  # torch.manual_seed would reset every device's generator too
    try:
        yield
    finally:
        if not in_worker:
            random.setstate(states[0])
            np.random.set_state(states[1])
            torch_rng.set_state(states[2])


def seed_everything(*words: int) -> None:
    """Set every generator from numbers, so that what is drawn next depends on nothing but them.

    Called before each step with (seed, epoch, step, rank): then dropout, drop path, mixup and cutmix need no saved
    state to be repeated, in whatever process or after whatever interruption.
    """
    digest = hashlib.blake2b(repr(words).encode(), digest_size=8).digest()
    number = int.from_bytes(digest, "little")
    random.seed(number)
    np.random.seed(number & 0xFFFFFFFF)  # the generator that timm's Mixup draws from
    torch.manual_seed(number)
