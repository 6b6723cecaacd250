"""The timer of an inference on a device of torch's."""

from __future__ import annotations

import torch

from vla_robot.policy.vla.reason.stage_timer import StageTimer


def timer_on(device: torch.device) -> StageTimer:
    """Return a timer, started, whose marks are CUDA events on a GPU, and the CPU's clock elsewhere."""
    if device.type != "cuda":
        return StageTimer()
    stream = torch.cuda.current_stream(device)

    def event() -> torch.cuda.Event:
        made = torch.cuda.Event(enable_timing=True)
        made.record(stream)
        return made

    return StageTimer(event)
