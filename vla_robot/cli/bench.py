"""`vla bench WHAT`: one measurement, with its baseline in the same run. Each module imports what it measures late."""

from __future__ import annotations

from typing import Annotated

import tyro

from vla_robot.cli import bench_data, bench_finetune, bench_loop, bench_policy, bench_serve, bench_stop, bench_transport
from vla_robot.cli.bench_data import DataArgs
from vla_robot.cli.bench_finetune import FinetuneBenchArgs
from vla_robot.cli.bench_loop import LoopArgs
from vla_robot.cli.bench_policy import PolicyArgs
from vla_robot.cli.bench_serve import ServeBenchArgs
from vla_robot.cli.bench_stop import StopArgs
from vla_robot.cli.bench_transport import TransportArgs

BenchArgs = (
    Annotated[PolicyArgs, tyro.conf.subcommand("policy")]
    | Annotated[ServeBenchArgs, tyro.conf.subcommand("serve")]
    | Annotated[LoopArgs, tyro.conf.subcommand("loop")]
    | Annotated[TransportArgs, tyro.conf.subcommand("transport")]
    | Annotated[StopArgs, tyro.conf.subcommand("stop")]
    | Annotated[DataArgs, tyro.conf.subcommand("data")]
    | Annotated[FinetuneBenchArgs, tyro.conf.subcommand("finetune")]
)


def main(args: PolicyArgs | ServeBenchArgs | LoopArgs | TransportArgs | StopArgs | DataArgs | FinetuneBenchArgs) -> int:
    """Measure one of them.

    Raises:
        VlaError: what it needs is not there.
    """
    match args:
        case PolicyArgs():
            return bench_policy.main(args)
        case ServeBenchArgs():
            return bench_serve.main(args)
        case LoopArgs():
            return bench_loop.main(args)
        case TransportArgs():
            return bench_transport.main(args)
        case StopArgs():
            return bench_stop.main(args)
        case DataArgs():
            return bench_data.main(args)
        case FinetuneBenchArgs():
            return bench_finetune.main(args)
