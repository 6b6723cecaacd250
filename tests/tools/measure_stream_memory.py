"""Draw shuffled batches of a dataset and print how much memory that took, at most, as JSON.

    python measure_stream_memory.py RECIPE BATCHES WORKERS

Peaks are those of the kernel: resident memory of this process, and of its largest worker.
"""

from __future__ import annotations

import json
import resource
import sys
from dataclasses import replace
from pathlib import Path

from vla_robot.data.pipeline.mixture import Choices, open_mixture
from vla_robot.policy.openvla.policy import load
from vla_robot.train.batches.augment import OpenVLAAugment
from vla_robot.train.batches.stream import Batches, Encoder, MixtureStream

POLICY = Path(__file__).resolve().parents[2] / "policies" / "openvla_nano"
BATCH = 64


def main(recipe: str, batches: int, workers: int) -> None:
    cameras = ("primary", "wrist")
    mixture = open_mixture(recipe, choices=Choices(cameras=cameras))
    encoder = replace(Encoder.of(load(POLICY), cameras, OpenVLAAugment(0)), proprio_dim=None)
    reader = iter(Batches(MixtureStream(mixture, encoder, BATCH), workers))
    for _ in range(batches):
        next(reader)
    del reader  # workers end, and their peak is counted
    of_workers = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    steps = len(mixture.datasets[0])
    print(
        json.dumps(
            {"steps": steps, "samples": batches * BATCH, "peak_kib": own_peak_kib(), "peak_worker_kib": of_workers}
        )
    )


def own_peak_kib() -> int:
    """Of this program alone; getrusage would count the peak of the process that started it, too."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
