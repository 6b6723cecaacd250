"""Wrappers of calls to robosuite: global generators that are seeded for a block, and silence while it is imported."""

from __future__ import annotations

import contextlib
import io
import logging
import random
import warnings
from collections.abc import Iterator

import numpy as np


def _words(seed: int) -> int | list[int]:
    """Return a seed in a form that numpy's global generator takes: words of 32 bits when it is longer than 32 bits."""
    if seed < 1 << 32:
        return seed
    return [seed >> shift & 0xFFFFFFFF for shift in range(0, seed.bit_length(), 32)]


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators of numpy and Python, and restore them at the end.

    robosuite 1.5.1 draws from numpy's and, where a task chooses among objects, from Python's.
    """
    words = _words(seed)
    state, python_state = np.random.get_state(), random.getstate()
    np.random.seed(words)
    random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)
        random.setstate(python_state)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide the warnings that robosuite prints when it is imported, about macros and packages that are not needed."""
    logger = logging.getLogger("robosuite_logs")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.setLevel(level)
