"""Training checkpoints that a run resumes from exactly: trained weights, optimiser moments, averaged weights, step.

Every random number in training is a function of the seed and the step, so nothing else is stored. Processes that
share the tensors write a file each (parallel/parts.py), and any number of them reads it. Nothing here is unpickled.

    OUT/resume/state.safetensors    model.NAME  average.NAME  and of AdamW exp_avg.NAME  exp_avg_sq.NAME,
                                    of Muon momentum_buffer.NAME
    OUT/resume/state.json           {"step": 1500, "fingerprint": "..."}
    OUT/resume.old/                 the checkpoint before it, in case the newest is damaged
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from vla_robot.core.errors import CheckpointError, DataError
from vla_robot.core.host import durable
from vla_robot.core.host.durable import make_folder, rename, sync_path, sync_tree
from vla_robot.policy.vla.json_files import read_json, write_json
from vla_robot.train.optimizers import Optimizers
from vla_robot.train.parallel.ddp import Ranks
from vla_robot.train.parallel.fsdp import local
from vla_robot.train.parallel.parts import WHOLE, StoredState, own_rows, part_name

FOLDER = "resume"
PREVIOUS = "resume.old"


def learning(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that are trained, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


class Average:
    """Exponential moving average of a model's weights, whose policy acts better than the last step's.

    The decay warms up, so that the average does not remember the random start.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self.weights = {name: p.detach().clone() for name, p in learning(model).items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Update the average with the weights after `step`."""
        decay = min(self._decay, (1 + step) / (10 + step))
        for name, p in learning(model).items():
            local(self.weights[name]).lerp_(local(p), 1 - decay)


def tensors(model: nn.Module, average: Average, optimizers: Optimizers) -> dict[str, Tensor]:
    """Return every tensor of a checkpoint by name; of a sharded model, tensors that are shared."""
    return dict(_named(model, average, optimizers))


def _named(model: nn.Module, average: Average, optimizers: Optimizers) -> Iterator[tuple[str, Tensor]]:
    for name, p in learning(model).items():
        yield f"model.{name}", p.detach()
        yield f"average.{name}", average.weights[name]
        yield from ((f"{moment}.{name}", tensor) for moment, tensor in optimizers.moments(p).items())


def save(out: Path, tensors: Mapping[str, Tensor], step: int, fingerprint: str) -> None:
    """Write `OUT/resume` and wait for the disk; the checkpoint that was there becomes `OUT/resume.old`.

    Raises:
        DataError: writing failed, as on a full disk. The previous checkpoint is untouched.
    """
    partial = _emptied(out)
    try:
        with writing(f"the checkpoint of step {step}", out):
            make_folder(partial)
            save_file({name: _in_main_memory(t) for name, t in tensors.items()}, partial / WHOLE)
            _finish(partial, step, fingerprint)
    except DataError:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _publish(out, step)


def save_shared(out: Path, tensors: Mapping[str, Tensor], step: int, fingerprint: str, ranks: Ranks) -> None:
    """Write `OUT/resume` as `save` does, each rank its own rows. Every rank must call this; `out` is on a shared disk.

    Raises:
        DataError: writing failed at some rank; all ranks raise. The previous checkpoint is untouched.
    """
    device = next(iter(tensors.values())).device
    partial = out / f"{FOLDER}.tmp"

    def write_own() -> None:
        rows, header = own_rows(tensors)
        path = partial / part_name(ranks.rank, ranks.count)
        save_file({name: _in_main_memory(t) for name, t in rows.items()}, path, metadata=header)
        sync_path(path)

    def begin() -> None:
        make_folder(_emptied(out))

    def finish() -> None:
        _finish(partial, step, fingerprint)
        _publish(out, step)

    for act, is_mine in ((begin, ranks.first), (write_own, True), (finish, ranks.first)):
        _at_all_ranks(act if is_mine else _nothing, f"the checkpoint of step {step}", out, ranks, device)


def _at_all_ranks(act: Callable[[], None], what: str, out: Path, ranks: Ranks, device: torch.device) -> None:
    """Run an act; if it fails at some rank, all ranks raise, and none waits for another for ever."""
    failure: DataError | None = None
    try:
        with writing(what, out):
            act()
    except DataError as error:
        failure = error
    if ranks.any(failure is not None, device):
        if ranks.first:
            shutil.rmtree(out / f"{FOLDER}.tmp", ignore_errors=True)
        raise failure or DataError(f"cannot write {what}: another process failed, and says why. {newest(out)}.")


def _nothing() -> None:
    """Wait only for the other ranks."""


def _emptied(out: Path) -> Path:
    """Return the path of the unfinished checkpoint, after what an earlier crash left there was deleted."""
    partial = out / f"{FOLDER}.tmp"
    shutil.rmtree(partial, ignore_errors=True)
    return partial


def _finish(partial: Path, step: int, fingerprint: str) -> None:
    write_json(partial / "state.json", {"step": step, "fingerprint": fingerprint})
    sync_tree(partial)  # before the previous one gives up its name


def _publish(out: Path, step: int) -> None:
    """Give the finished checkpoint its name; the one that had it becomes `OUT/resume.old`."""
    with writing(f"the checkpoint of step {step}", out):
        if (out / FOLDER).exists():
            shutil.rmtree(out / PREVIOUS, ignore_errors=True)
            rename(out / FOLDER, out / PREVIOUS)
        rename(out / f"{FOLDER}.tmp", out / FOLDER)


def _in_main_memory(tensor: Tensor) -> Tensor:
    """Return a tensor in main memory that shares it with no other, as safetensors asks; a GPU gets no copy."""
    there = tensor.detach().cpu().contiguous()
    return there if there.untyped_storage().nbytes() == there.nbytes else there.clone()


@contextmanager
def writing(what: str, out: Path) -> Generator[None]:
    """Wrap `vla_robot.core.host.durable.writing` for a run, and include the errors of safetensors.

    Args:
        what: name of what is written, for the message.
        out: folder of the run.

    Raises:
        DataError: writing failed; the message names the last good checkpoint.
    """
    good = newest(out)
    with durable.writing(what, f"{good[0].upper()}{good[1:]}."):
        try:
            yield
        except SafetensorError as error:
            raise _system_error(error) from error


@contextmanager
def replacing(folder: Path, out: Path) -> Generator[Path]:
    """Replace a folder of a run at once: when the block ends, the new content is on the disk under the folder's name.

    Args:
        folder: the folder to replace; it need not exist.
        out: folder of the run.

    Yields:
        A path that does not exist yet, where the block makes the new folder. A crash leaves it under this name.

    Raises:
        DataError: writing failed.
    """
    partial = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(partial, ignore_errors=True)
    with writing(str(folder), out):
        yield partial
        sync_tree(partial)
        shutil.rmtree(folder, ignore_errors=True)
        rename(partial, folder)


def _system_error(error: SafetensorError) -> OSError:
    """Return the system error that safetensors quotes: 'I/O error: No space left on device (os error 28)'."""
    found = re.search(r"(?:os error|code:) (\d+)", str(error))
    number = int(found.group(1)) if found else 0
    return OSError(number, os.strerror(number)) if number else OSError(str(error))


def newest(out: Path) -> str:
    """Return a phrase that names the last good checkpoint."""
    folder = out / FOLDER
    return f"the last good checkpoint is {folder}" if folder.exists() else "no checkpoint was written yet"


def exists(out: Path) -> bool:
    """Return whether `OUT/resume` exists; if only `OUT/resume.old` does, rename it to `OUT/resume` first."""
    _restore_previous(out)
    return (out / FOLDER / "state.json").is_file()


@torch.no_grad()
def load(out: Path, model: nn.Module, average: Average, optimizers: Optimizers, fingerprint: str) -> int:
    """Restore weights, average and moments from `OUT/resume`.

    Returns:
        The number of steps done.

    Raises:
        CheckpointError: the checkpoint is damaged, or was made by another recipe or from other data.
    """
    folder = out / FOLDER
    note = read_json(folder / "state.json")
    if note.get("fingerprint") != fingerprint:
        raise CheckpointError(
            f"{folder} was made by another recipe or from other data. Choose another --out, or delete {out}."
        )
    try:
        step = int(note["step"])
        with StoredState(folder) as stored:
            for name, p in learning(model).items():
                stored.read_into(f"model.{name}", p)
                stored.read_into(f"average.{name}", average.weights[name])
                moments = {moment: torch.zeros_like(p) for moment in optimizers.moment_names(p)}
                if any(f"{moment}.{name}" in stored.names() for moment in moments):  # not if it never had a gradient
                    for moment, tensor in moments.items():
                        stored.read_into(f"{moment}.{name}", tensor)
                    optimizers.remember(p, moments, step)
    except (SafetensorError, KeyError, RuntimeError, OSError, ValueError) as error:
        before = out / PREVIOUS
        then = f"go on from the one before, {before}" if before.exists() else "train from the start"
        raise CheckpointError(f"{folder} is damaged ({error}); delete it to {then}.") from error
    return step


def _restore_previous(out: Path) -> None:
    """Rename `OUT/resume.old` to `OUT/resume` if only the former exists, as after a crash between the two renames."""
    previous = out / PREVIOUS
    if previous.exists() and not (out / FOLDER).exists():
        rename(previous, out / FOLDER)
