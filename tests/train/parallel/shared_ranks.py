"""Processes that share models and checkpoints, as a program: prints what each of them found, as JSON.

usage: shared_ranks.py FOLDER POLICY ..
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from vla_robot.policy.families import family_of
from vla_robot.policy.vla.loading import Loading
from vla_robot.policy.vla.safetensors_files import Stored
from vla_robot.train.parallel.fsdp import local, shard, whole
from vla_robot.train.parallel.parts import StoredState, own_rows, part_name

SHAPES = {"a": (7, 3), "b": (2,), "c": (1, 4, 2), "d": (12, 5)}
"""Some have fewer rows than there are processes."""


def numbers(name: str) -> Tensor:
    rows = SHAPES[name]
    return torch.arange(float(torch.Size(rows).numel())).reshape(rows)


def shared(tensors: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    mesh = init_device_mesh("cpu", (count,))
    return {n: distribute_tensor(t, mesh, [Shard(0)], src_data_rank=None) for n, t in tensors.items()}


def write(folder: Path, rank: int, count: int) -> dict[str, Any]:
    """Write this rank's rows."""
    rows, header = own_rows(shared({name: numbers(name) for name in SHAPES}, count))
    save_file(rows, folder / part_name(rank, count), metadata=header)
    dist.barrier()
    return {}


def read(folder: Path, rank: int, count: int) -> dict[str, Any]:
    """Read this rank's rows, of files that another number of ranks wrote."""
    wanted = shared({name: numbers(name) for name in SHAPES}, count)
    with StoredState(folder) as stored:
        equal = True
        for name, target in shared({name: torch.zeros(SHAPES[name]) for name in SHAPES}, count).items():
            stored.read_into(name, target)
            equal &= torch.equal(local(target), local(wanted[name]))
        own = sum(local(tensor).nbytes for tensor in wanted.values())
        return {"equal": equal, "bytes_read": stored.bytes_read, "own": own}


def load(folder: Path, rank: int, count: int) -> dict[str, Any]:
    """Load a policy as a sharded training does, and compare the whole with its folder."""
    numbers_read = [0]
    plain = Stored._bytes

    def counted(*args: Any) -> Tensor:
        part = plain(*args)
        numbers_read[0] += part.numel()
        return part

    setattr(Stored, "_bytes", counted)  # noqa: B010 - a forked process, which ends
    model = family_of(folder).load(folder, Loading(device=torch.device("meta"), trainable=True)).model
    assert all(p.is_meta for p in model.parameters()) and numbers_read == [0]
    stored = family_of(folder).rows(folder)
    shard(model, torch.device("cpu"), count, stored)
    buffers = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
    here = sum(local(p).numel() for p in model.parameters())
    found = {
        "numbers_read": numbers_read[0],
        "here": here,
        "buffers_of_files": sum(buffer.numel() for name, buffer in buffers.items() if name in stored),
        "buffers": [float(b.double().sum()) for b in buffers.values()],
    }
    tensors = {name: whole(parameter) for name, parameter in model.named_parameters()}
    if rank == 0:
        alone = family_of(folder).load_model(folder, torch.float32, torch.device("cpu"))
        found["equal"] = all(torch.equal(tensors[name], p) for name, p in alone.named_parameters())
        found["whole"] = sum(p.numel() for p in alone.parameters())
        found["alone"] = [float(b.double().sum()) for b in alone.buffers()]
    return found


def together(act: Callable[[Path, int, int], dict[str, Any]], folder: Path, out: Path, count: int) -> list[Any]:
    """Run an act in forks of this process, and return what each found."""
    meeting = out / f"meeting_{os.urandom(4).hex()}"
    children = [_fork(act, folder, out, rank, count, meeting) for rank in range(count)]
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * count
    return [json.loads((out / f"found_{rank}.json").read_text()) for rank in range(count)]


def _fork(act: Any, folder: Path, out: Path, rank: int, count: int, meeting: Path) -> int:
    child = os.fork()
    if child == 0:
        try:
            dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=count)
            (out / f"found_{rank}.json").write_text(json.dumps(act(folder, rank, count)))
            dist.barrier()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    return child


if __name__ == "__main__":
    out, *policies = map(Path, sys.argv[1:])
    parts = out / "parts"
    parts.mkdir()
    together(write, parts, out, 2)
    results = {"files": sorted(path.name for path in parts.iterdir())}
    results |= {f"read by {count}": together(read, parts, out, count) for count in (1, 2, 3)}
    results |= {policy.name: together(load, policy, out, 2) for policy in policies}
    print(json.dumps(results))
