"""`vla bench WHAT`: one measurement, with its baseline in the same run. Each module imports what it measures late."""

from __future__ import annotations

from typing import Annotated

import tyro

from vla_robot.cli import bench_policy, bench_transport
from vla_robot.cli.bench_policy import PolicyArgs
from vla_robot.cli.bench_transport import TransportArgs

BenchArgs = (
    Annotated[PolicyArgs, tyro.conf.subcommand("policy")] | Annotated[TransportArgs, tyro.conf.subcommand("transport")]
)


def main(args: PolicyArgs | TransportArgs) -> int:
    """Measure one of them.

    Raises:
        VlaError: what it needs is not there.
    """
    match args:
        case PolicyArgs():
            return bench_policy.main(args)
        case TransportArgs():
            return bench_transport.main(args)
