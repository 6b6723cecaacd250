"""The time of stages, without a wait for the device at each."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import pytest
import torch

from vla_robot.policy.vla.reason import stage_timer
from vla_robot.policy.vla.reason.device_timer import timer_on
from vla_robot.policy.vla.reason.stage_timer import StageTimer


class Event:
    """A CUDA event of a GPU that reaches each 3 ms after the one before, and no time before it is waited for."""

    numbers: Iterator[int] = count()

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        self.number = next(self.numbers)
        self.stream: object = None
        self.is_reached = False

    def record(self, stream: object) -> None:
        self.stream = stream

    def synchronize(self) -> None:
        self.is_reached = True

    def elapsed_time(self, end: Event) -> float:
        assert self.stream == end.stream == "the stream"
        return 3.0 * (end.number - self.number)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise AssertionError("all of the device was waited for")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", refuse)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "the stream")
    monkeypatch.setattr(torch.cuda, "Event", Event)


@pytest.mark.usefixtures("gpu")
def test_a_gpu_is_waited_for_once_when_the_times_are_read() -> None:
    timer = timer_on(torch.device("cuda", 0))
    for name in ("towers", "projector", "towers"):
        timer.lap(name)
    assert not any(mark.is_reached for mark in timer._marks)
    assert timer.ms == {"towers": 6.0, "projector": 3.0}
    assert [mark.is_reached for mark in timer._marks] == [False, False, False, True]


@pytest.mark.usefixtures("gpu")
def test_a_model_on_a_cpu_leaves_the_gpu_beside_it_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter((1.0, 1.5, 2.5))
    monkeypatch.setattr(stage_timer.time, "perf_counter", lambda: next(seconds))
    timer = timer_on(torch.device("cpu"))
    timer.lap("prefill")
    timer.lap("decode")
    assert timer.ms == {"prefill": 500.0, "decode": 1000.0}


def test_a_timer_that_was_told_nothing_has_no_times() -> None:
    assert StageTimer().ms == {}
