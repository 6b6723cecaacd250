"""`vla bench WHAT`: runs one measurement and its baseline. The modules import heavy packages late."""

from __future__ import annotations

from typing import Annotated

import tyro

from benchmarks import data as bench_data
from benchmarks import finetune as bench_finetune
from benchmarks import loop as bench_loop
from benchmarks import policy as bench_policy
from benchmarks import serve as bench_serve
from benchmarks import stop as bench_stop
from benchmarks import transport as bench_transport
from benchmarks.data import DataArgs
from benchmarks.edge import compare as bench_edge
from benchmarks.edge.compare import EdgeArgs
from benchmarks.finetune import FinetuneBenchArgs
from benchmarks.gpu import check as bench_gpu
from benchmarks.gpu.check import GpuArgs
from benchmarks.loop import LoopArgs
from benchmarks.policy import PolicyArgs
from benchmarks.serve import ServeBenchArgs
from benchmarks.stop import StopArgs
from benchmarks.transport import TransportArgs
from benchmarks.worlds import compare as bench_world
from benchmarks.worlds.compare import WorldArgs

BenchArgs = (
    Annotated[PolicyArgs, tyro.conf.subcommand("policy")]
    | Annotated[ServeBenchArgs, tyro.conf.subcommand("serve")]
    | Annotated[LoopArgs, tyro.conf.subcommand("loop")]
    | Annotated[TransportArgs, tyro.conf.subcommand("transport")]
    | Annotated[StopArgs, tyro.conf.subcommand("stop")]
    | Annotated[DataArgs, tyro.conf.subcommand("data")]
    | Annotated[FinetuneBenchArgs, tyro.conf.subcommand("finetune")]
    | Annotated[GpuArgs, tyro.conf.subcommand("gpu")]
    | Annotated[EdgeArgs, tyro.conf.subcommand("edge")]
    | Annotated[WorldArgs, tyro.conf.subcommand("world")]
)


def main(
    args: PolicyArgs
    | ServeBenchArgs
    | LoopArgs
    | TransportArgs
    | StopArgs
    | DataArgs
    | FinetuneBenchArgs
    | GpuArgs
    | EdgeArgs
    | WorldArgs,
) -> int:
    """Run the benchmark of these arguments.

    Raises:
        VlaError: a policy, a package or a server that it needs is absent.
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
        case GpuArgs():
            return bench_gpu.main(args)
        case EdgeArgs():
            return bench_edge.main(args)
        case WorldArgs():
            return bench_world.main(args)
