"""Blocks are recorded in one thread and repeated from any: the same tokens, and nothing but tensors is relied on."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from vla_robot.core.errors import PolicyError
from vla_robot.policy.families import FAMILIES, family_of
from vla_robot.policy.openvla.engine import chunk_regression
from vla_robot.policy.openvla.oft import load_oft
from vla_robot.policy.openvla.policy import load
from vla_robot.policy.vla.engine.graph_thread import in_graph_thread
from vla_robot.policy.vla.loading import Loading
from vla_robot.policy.vla.policy import AnyVLAPolicy
from vla_robot.policy.vla.slots import block
from vla_robot.policy.vla.slots.recorded import recorded
from vla_robot.policy.vla.slots.turns import Turns

from ..openvla import tiny_policies
from ..vlm import tiny_vlms
from .tape import Tapes

CUDA = torch.device("cuda", 1)
THREADS = 4
PASSES = ("begin", "correct", "advance")
UNRECORDED = ("qwen3_vl",)
"""Families whose language model reads numbers; docs/gpu.md."""
QUICK = ("openvla", "paligemma", "gemma4")
RECORDED = [
    name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES if name not in UNRECORDED
]


@pytest.fixture
def tapes(monkeypatch: pytest.MonkeyPatch) -> Tapes:
    """Stands in for CUDA's recording."""
    made = Tapes()
    monkeypatch.setattr(block, "recorded", made)
    monkeypatch.setattr(chunk_regression, "recorded", made)
    return made


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_policies.create_policy(tmp_path_factory.mktemp("tiny"))


def from_threads[R](works: Sequence[Callable[[], R]]) -> list[R]:
    """Results of works that threads do at the same time."""
    together = threading.Barrier(THREADS)

    def run(work: Callable[[], R]) -> R:
        together.wait(60)
        return work()

    assert len(works) % THREADS == 0
    with ThreadPoolExecutor(THREADS, "caller") as threads:
        return list(threads.map(run, works))


def policy_of(name: str, tiny_folder: Path, folder: Path) -> tuple[AnyVLAPolicy, Callable[[int], Any]]:
    """A tiny policy whose weights are stirred, so that its answers differ, and its observations by number."""
    if name == "openvla":
        policy, seen = load(tiny_folder), lambda n: tiny_policies.observation(TEXTS[n % 2], n)
    else:
        made = tiny_vlms.create(folder, name, use_state=True)
        policy, seen = family_of(made).load(made, Loading(trainable=True)), tiny_vlms.observation
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return policy, seen


TEXTS = tiny_vlms.INSTRUCTIONS


@pytest.mark.parametrize("name", RECORDED)
def test_any_thread_repeats_what_one_recorded(name: str, tiny_folder: Path, tmp_path: Path, tapes: Tapes) -> None:
    policy, seen = policy_of(name, tiny_folder, tmp_path / name)
    batches = [policy.read([seen(number), seen(number + 1)]) for number in range(THREADS)]
    expected = [policy.generate(batch, 7) for batch in batches]
    assert len(np.unique(expected)) > 1
    policy.in_blocks = True
    policy.generate(batches[0], 7)
    by_shape = {step for step, _ in tapes.recorded}
    assert by_shape == {*PASSES} | ({"see"} if policy.model.perceives_by_shape else set())
    found = from_threads([lambda batch=batch: policy.generate(batch, 7) for batch in batches * 2])
    for tokens, wanted in zip(found, expected * 2, strict=True):
        np.testing.assert_array_equal(tokens, wanted)
    assert {thread for _, thread in tapes.recorded} == {threading.current_thread().name}
    assert len({thread for _, thread in tapes.repeated}) == 1 + THREADS
    assert len(policy._blocks.sizes) == 1


def test_two_threads_that_come_first_record_a_block_once(tiny_folder: Path, tapes: Tapes) -> None:
    policy = load(tiny_folder)
    policy.in_blocks = True
    batch = policy.read([tiny_policies.observation()])
    first, *others = from_threads([lambda: policy.generate(batch, 7)] * THREADS)
    assert all((tokens == first).all() for tokens in others)
    assert sorted(step for step, _ in tapes.recorded) == sorted((*PASSES, "see"))
    assert len({thread for _, thread in tapes.recorded}) == 1


def test_chunks_by_regression_too(tiny_folder: Path, tmp_path: Path, tapes: Tapes) -> None:
    policy = load_oft(tiny_policies.publish(tiny_folder, tmp_path), tiny_policies.OFT)
    batches = [policy.read([tiny_policies.observation(TEXTS[0], seed)]) for seed in range(THREADS)]
    expected = [policy.predict(batch) for batch in batches]
    policy.regression.in_blocks = True
    found = from_threads([lambda batch=batch: policy.predict(batch) for batch in batches * 2])
    for actions, wanted in zip(found, expected * 2, strict=True):
        np.testing.assert_allclose(actions, wanted, atol=1e-6)
    assert sorted(step for step, _ in tapes.recorded) == ["answer", "see"]


def test_a_step_that_relies_on_python_or_reads_a_number_is_caught(
    tiny_folder: Path, tapes: Tapes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lest the stand-in repeats more than a graph would."""
    policy, seen = policy_of("openvla", tiny_folder, tiny_folder)
    batches = [policy.read([seen(number)]) for number in range(THREADS)]
    expected = [policy.generate(batch, 7) for batch in batches]
    see, called = block.Block._see, list[block.Block]()
    policy.in_blocks = True

    def blind_at_first(self: block.Block) -> None:
        """Does the right thing from its second call on, which a recording does not know of."""
        if called:
            see(self)
        else:
            called.append(self)
            self._features.zero_()

    monkeypatch.setattr(block.Block, "_see", blind_at_first)
    answers: list[NDArray[np.int64]] = [policy.generate(batch, 7) for batch in batches]
    assert any((said != wanted).any() for said, wanted in zip(answers, expected, strict=True))

    def curious(self: block.Block) -> None:
        see(self)
        assert self.pixels.sum().item() is not None

    monkeypatch.setattr(block.Block, "_see", curious)
    policy._forget_blocks()
    with pytest.raises(RuntimeError, match="reads a number"):
        policy.generate(batches[0], 7)


class Recording:
    """What torch.cuda is asked for, in order, with the thread."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[Any] = []
        self.streams = threading.local()
        for name in ("device", "stream", "graph"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        for name in ("Stream", "CUDAGraph"):
            monkeypatch.setattr(torch.cuda, name, lambda name=name: mock.Mock(name=name))
        monkeypatch.setattr(torch.cuda, "current_stream", self.current_stream)
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")

    def current_stream(self, device: Any = None) -> Any:
        if not hasattr(self.streams, "mine"):
            self.streams.mine = mock.Mock(name=threading.current_thread().name)
        return self.streams.mine

    @contextlib.contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        self.asked.append(("device", device))
        yield
        self.asked.append(("device", None))

    @contextlib.contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        self.asked.append("beside")
        yield
        self.asked.append("back")

    @contextlib.contextmanager
    def graph(self, graph: Any, **options: Any) -> Iterator[None]:
        self.asked.append(options)
        yield


def test_a_recording_keeps_out_of_the_way_of_other_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every work runs once on a stream beside, then is recorded on its device, where others may work meanwhile."""
    cuda, done = Recording(monkeypatch), list[str]()
    steps = recorded(CUDA, {name: lambda name=name: done.append(name) for name in ("see", "begin")})
    options = {"pool": "pool", "capture_error_mode": "thread_local"}
    assert cuda.asked == [("device", CUDA), "beside", "back", options, options, ("device", None)]
    assert done == ["see", "begin"] * 2
    assert all(isinstance(step, mock.Mock) for step in steps.values()), "a step is the graph's own repetition"
    assert recorded(torch.device("cpu"), {"see": done.clear})["see"] == done.clear


def test_a_memory_waits_for_the_stream_that_used_it_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread may choose its own stream; the lock alone would let its work begin before the last one's is done."""
    Recording(monkeypatch)
    turns, streams = Turns(CUDA), list[Any]()

    def use(fails: bool) -> None:
        streams.append(torch.cuda.current_stream())
        with contextlib.suppress(PolicyError), turns.one():
            if fails:
                raise PolicyError("a number is not finite")

    for fails in (False, True, False):
        thread = threading.Thread(target=use, args=(fails,))
        thread.start()
        thread.join()
    first, second, third = streams
    first.wait_event.assert_not_called()
    second.wait_event.assert_called_once_with(first.record_event.return_value)
    third.wait_event.assert_called_once_with(second.record_event.return_value)


def test_compiled_policies_run_in_one_thread_with_tables_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's own look-up of its graphs raises in a thread that did not import it."""
    from torch._inductor import cudagraph_trees

    Recording(monkeypatch)

    def look_up() -> Any:
        return cudagraph_trees.get_obj(cudagraph_trees.local, "tree_manager_containers")

    with ThreadPoolExecutor(1) as other, pytest.raises(AssertionError):
        other.submit(look_up).result()
    works = [lambda: (look_up(), threading.get_ident(), torch.is_inference_mode_enabled())] * THREADS
    found = from_threads([lambda work=work: in_graph_thread(work, CUDA) for work in works])
    assert all(tables is found[0][0] for tables, _, _ in found)
    assert {(thread, mode) for _, thread, mode in found} == {(found[0][1], False)}
    with torch.inference_mode():
        assert in_graph_thread(works[0], CUDA)[2], "inference mode belongs to a thread, and goes with the work"
    with pytest.raises(ZeroDivisionError):
        in_graph_thread(lambda: 1 // 0, CUDA)
