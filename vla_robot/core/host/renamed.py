"""Renamed arguments of Python functions: the old name works for one more release, with a DeprecationWarning."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping

RENAMED: Mapping[str, Mapping[str, str]] = {"load_policy": {"pre_step": "image_preprocessing"}}
"""Name of a function -> old name of an argument -> new name."""


def takes_old_names[**P, R](function: Callable[P, R]) -> Callable[P, R]:
    """Make a function of RENAMED accept its arguments' old names.

    The function raises TypeError for an argument that is given under both names.
    """
    renamed = RENAMED[function.__name__]

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        for old in renamed.keys() & kwargs.keys():
            new = renamed[old]
            if new in kwargs:
                raise TypeError(f"{function.__name__}: '{old}' is the old name of '{new}', which is there too.")
            message = f"{function.__name__}: '{old}' is called '{new}' now; the old name works for one more release."
            warnings.warn(message, DeprecationWarning, stacklevel=2)
            kwargs[new] = kwargs.pop(old)
        return function(*args, **kwargs)

    return call
