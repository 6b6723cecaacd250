"""Tests of building an episode beside a loop that may not wait: frames are encoded in the background, or dropped."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from vla_robot.core.errors import DataError
from vla_robot.core.messages import StepResult
from vla_robot.data import demonstration
from vla_robot.data.demonstration import DemonstrationBuilder
from vla_robot.data.formats import png
from vla_robot.testing import toy_embodiment, toy_observation

TOY = toy_embodiment(height=8, width=8)
ACTION = np.array([0.01, 1.0])


def add(builder: DemonstrationBuilder, steps: range, success: bool = False) -> None:
    for step in steps:
        seen = toy_observation(TOY, step)
        builder.add(seen, ACTION, StepResult(seen, ACTION, success, False, False))


def test_frames_encoded_in_the_background_are_those_encoded_at_once() -> None:
    made = []
    for in_background in (False, True):
        builder = DemonstrationBuilder(in_background=in_background)
        add(builder, range(5), success=True)
        made.append(builder.finish(TOY, 0, "me"))
    assert made[0].cameras["front"].png == made[1].cameras["front"].png
    np.testing.assert_array_equal(made[0].cameras["front"].pixel_counts, made[1].cameras["front"].pixel_counts)
    assert made[1].succeeded


def test_a_step_whose_frames_exceed_the_backlog_is_left_out_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    may_encode = threading.Event()
    encode = png.encode
    monkeypatch.setattr(png, "encode", lambda image: encode(image) if may_encode.wait(60) else b"")
    monkeypatch.setattr(demonstration, "BACKLOG", 3)
    builder = DemonstrationBuilder(in_background=True)
    add(builder, range(4))
    add(builder, range(4, 5), success=True)
    assert (len(builder), builder.dropped) == (3, 2)
    may_encode.set()
    made = builder.finish(TOY, 0, "me")
    frames = [int(png.decode(data)[0, 0, 0]) for data in made.cameras["front"].png]
    assert frames == made.stamps_ns.tolist() == [0, 1, 2]
    assert made.succeeded  # the success of the last step counts even if its frames were dropped


def test_an_error_in_the_background_is_raised_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(image: object) -> bytes:
        raise DataError("no room for a frame.")

    monkeypatch.setattr(png, "encode", fail)
    builder = DemonstrationBuilder(in_background=True)
    add(builder, range(2))
    with pytest.raises(DataError, match="no room for a frame"):
        builder.finish(TOY, 0, "me")
