"""Training samples from a store that is reached over the network, by processes whose number changes."""

from __future__ import annotations

import hashlib
import multiprocessing
import re
import shutil
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("aiohttp")

from vla_robot.data.pipeline.mixture import Choices, Mixture, Sample, open_mixture
from vla_robot.data.pipeline.windows import Window
from vla_robot.recipe import parse
from vla_robot.recipe.finetune import FinetuneRecipe, MixtureFinetuneRecipe
from vla_robot.recipe.reading.dump import dump
from vla_robot.recipe.reading.url import Url
from vla_robot.train.batches.stream import REQUESTS_AT_ONCE, Batches, Encoder, MixtureStream

SAMPLES = Path(__file__).parents[2] / "golden" / "rlds_samples"
STEP_ROWS = 12
"""Samples of a step over all processes; two, three and one process share them equally."""

STEPS, CUT = 6, 3
PATIENCE_S = 240.0


def samples(tmp_path: Path) -> Path:
    """A copy, since the first reading writes an index into each dataset's folder."""
    return Path(shutil.copytree(SAMPLES, tmp_path / "samples"))


Marks = list[str]
"""Number and hash of each sample."""


@dataclass
class Store:
    """A web server of one folder that answers ranges, as stores do, and counts what it is asked.

    Attributes:
        url: address of the folder.
        at_once: most requests for parts of files that were answered at the same time.
        gate: while it is set, requests for parts wait until `wanted` of them are there.
    """

    folder: Path
    at_once: int = 0
    parts: int = 0
    now: int = 0
    gate: threading.Barrier | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        store = self

        class Handler(SimpleHTTPRequestHandler):
            def __init__(self, *args: Any) -> None:
                super().__init__(*args, directory=str(store.folder))

            def do_GET(self) -> None:
                wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
                if wanted is None:
                    super().do_GET()
                    return
                with store.counted():
                    first, last = map(int, wanted.groups())
                    data = Path(self.translate_path(self.path)).read_bytes()
                    part = data[first : last + 1]
                    self.send_response(206)
                    self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(data)}")
                    self.send_header("Content-Length", str(len(part)))
                    self.end_headers()
                    self.wfile.write(part)

            def log_message(self, format: str, *args: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def counted(self) -> Any:
        store = self

        class Counted:
            def __enter__(self) -> None:
                with store.lock:
                    store.now, store.parts = store.now + 1, store.parts + 1
                    store.at_once = max(store.at_once, store.now)
                if store.gate is not None:
                    store.gate.wait(PATIENCE_S)

            def __exit__(self, *_: object) -> None:
                with store.lock:
                    store.now -= 1

        return Counted()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    folder = tmp_path_factory.mktemp("store")
    shutil.copytree(SAMPLES, folder, dirs_exist_ok=True)
    store = Store(folder)
    yield store
    store.server.shutdown()


def opened(root: str | Path, cache: Path) -> Mixture:
    return open_mixture("bridge_rt_1", root, Choices(window=Window(future=1), seed=3), cache)


@pytest.fixture(scope="module")
def remote(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Mixture:
    return opened(store.url, tmp_path_factory.mktemp("cache"))


class Hashes:
    """In place of an encoder: hashes each sample, frames included."""

    def require_fit(self, mixture: Mixture) -> None: ...

    def __call__(self, samples: Sequence[Sample], numbers: NDArray[np.int64]) -> Marks:
        return [f"{number} {mark(sample)}" for number, sample in zip(numbers, samples, strict=True)]


def mark(sample: Sample) -> str:
    frames = b"".join(b"".join(files) for files in sample.frames.values())
    content = sample.actions.tobytes() + sample.state.tobytes() + sample.instruction.encode() + frames
    return hashlib.sha256(content).hexdigest()


def drawn(mixture: Mixture, rank: int, ranks: int, first: int, steps: int, workers: int) -> Marks:
    """Return what a rank reads in some steps, with its own worker processes that read ahead."""
    stream = MixtureStream(mixture, cast("Encoder", Hashes()), STEP_ROWS // ranks, rank, ranks)
    batches = Batches(stream, workers)
    batches.load_state_dict({"step": first})
    return [each for batch, _ in zip(batches, range(steps), strict=False) for each in cast("Marks", batch)]


def of_processes(mixture: Mixture, ranks: int, first: int, steps: int) -> Marks:
    """Return what processes read together, in whatever order."""
    context = multiprocessing.get_context("fork")
    queue: Any = context.Queue()

    def rank_reads(rank: int) -> None:
        queue.put(drawn(mixture, rank, ranks, first, steps, workers=1))

    processes = [context.Process(target=rank_reads, args=(rank,)) for rank in range(ranks)]
    for process in processes:
        process.start()
    marks = [each for _ in processes for each in queue.get(timeout=PATIENCE_S)]
    for process in processes:
        process.join()
    return marks


def test_two_processes_then_three_read_what_one_reads_uninterrupted(remote: Mixture) -> None:
    whole = drawn(remote, 0, 1, 0, STEPS, workers=0)
    assert len(whole) == STEPS * STEP_ROWS
    assert len({text.split()[1] for text in whole}) > STEP_ROWS, "the samples differ"
    parts = of_processes(remote, 2, 0, CUT) + of_processes(remote, 3, CUT, STEPS - CUT)
    assert Counter(parts) == Counter(whole)


def test_a_store_gives_the_samples_of_the_disk(remote: Mixture, tmp_path: Path) -> None:
    here = opened(samples(tmp_path), tmp_path)
    assert remote.statistics == here.statistics
    assert [mark(remote.sample(n)) for n in range(40)] == [mark(here.sample(n)) for n in range(40)]


def test_samples_of_a_batch_are_asked_for_at_the_same_time(remote: Mixture, store: Store) -> None:
    rows = 8
    assert rows <= REQUESTS_AT_ONCE
    store.gate = threading.Barrier(rows)  # no answer is sent before all requests of the batch are there
    try:
        stream = MixtureStream(remote, cast("Encoder", Hashes()), rows)
        assert len(cast("Marks", stream.batch(0))) == rows
        assert store.at_once >= rows
    finally:
        store.gate = None


def test_a_memory_store_is_read_too(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    memory.put(str(SAMPLES), "/remote_mixture", recursive=True)
    there, here = opened("memory://remote_mixture", tmp_path / "a"), opened(samples(tmp_path), tmp_path / "b")
    assert [mark(there.sample(n)) for n in range(12)] == [mark(here.sample(n)) for n in range(12)]


def test_a_recipe_keeps_a_url_and_still_anchors_a_path(tmp_path: Path) -> None:
    table = {"mixture": "bridge_rt_1", "policy": "policy", "root": "gs://bucket/oxe"}
    recipe = parse(MixtureFinetuneRecipe, table, tmp_path / "run.toml")
    assert recipe.root == Url("gs://bucket/oxe")
    assert isinstance(recipe.root, Url)
    assert 'root = "gs://bucket/oxe"' in dump(recipe)
    again = parse(FinetuneRecipe, {**table, "root": "oxe"}, tmp_path / "run.toml")
    assert isinstance(again, MixtureFinetuneRecipe)
    assert again.root == tmp_path / "oxe"
