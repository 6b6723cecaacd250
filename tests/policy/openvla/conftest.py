"""The oracle: a checkpoint filled by rule, and what the reference implementation says about it."""

from __future__ import annotations

import functools
import json
import math
import subprocess
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from vla_robot.policy.openvla.network.config import OpenVLAConfig
from vla_robot.policy.openvla.network.model import OpenVLA
from vla_robot.policy.openvla.policy import OpenVLAPolicy, load
from vla_robot.policy.openvla.weights import file_name, save_model
from vla_robot.policy.vla.inputs.preprocess import Preprocessor
from vla_robot.policy.vla.json_files import write_json
from vla_robot.recipe.finetune import Architecture

from .tiny_policies import create_policy

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "openvla_small"
MEANS = ((0.484375, 0.455078125, 0.40625), (0.5, 0.5, 0.5))
STDS = ((0.228515625, 0.2236328125, 0.224609375), (0.5, 0.5, 0.5))


def fill(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """The rule that both implementations' weights follow, seed 0."""
    rng = np.random.default_rng([0, zlib.crc32(name.encode())])
    x = rng.standard_normal(shape, dtype=np.float32)
    last = name.rpartition(".")[2]
    if last == "bias":
        return np.float32(0.02) * x
    if last == "scale_factor":
        return np.float32(0.3) + np.float32(0.05) * x
    if len(shape) == 1:
        return 1 + np.float32(0.1) * x
    if "pos_embed" in name or "token" in last or "latent" in last:
        return np.float32(0.5) * x
    if "embed_tokens" in name:
        return x
    x = x / np.float32(np.sqrt(np.prod(shape[1:])))
    if name == "language_model.lm_head.weight":
        x[31744:32000] *= 6
    return x


@dataclass(frozen=True)
class Oracle:
    """The reference's answers beside our policy on the same weights."""

    policy: OpenVLAPolicy
    expected: Mapping[str, NDArray]
    images: list[NDArray[np.uint8]]

    def ids(self, index: int) -> NDArray[np.int64]:
        return self.expected[f"{index}/input_ids"]


def fill_model(folder: Path) -> OpenVLA:
    model = OpenVLA(OpenVLAConfig.read(folder))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(fill(file_name(name), tuple(parameter.shape))))
    return model.requires_grad_(False).eval()


def oracle_of(folder: Path) -> Oracle:
    model = fill_model(folder)
    preprocessor = Preprocessor(224, model.config.image_resize_strategy, MEANS, STDS)
    return Oracle(
        OpenVLAPolicy(model, preprocessor, None, model.config.norm_stats),
        np.load(folder / "expected.npz"),
        [np.asarray(Image.open(folder / f"image_{i}.png").convert("RGB")) for i in range(5)],
    )


@pytest.fixture(scope="session")
def oracle_in() -> Callable[[Path], Oracle]:
    return oracle_of


@pytest.fixture(scope="session")
def oracle() -> Oracle:
    return oracle_of(GOLDEN)


@pytest.fixture(scope="session")
def small_folder(oracle: Oracle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The oracle's checkpoint as a folder in the published layout, without a tokenizer."""
    folder = tmp_path_factory.mktemp("small")
    save_model(oracle.policy.model, folder)
    write_json(folder / "preprocessor_config.json", oracle.policy.preprocessor.to_dict())
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new policy of two cameras and two state numbers, a few thousand weights."""
    return create_policy(tmp_path_factory.mktemp("tiny"))


LARGE = Architecture(
    image_size=28, tower_dim=384, tower_depth=6, tower_heads=6, llm_dim=768, llm_layers=6, llm_heads=12,
    llm_ff_dim=1536, text_vocab=320, max_positions=128,
    initializer_range=0.02,  # the tests' tolerances were set for these weights
)  # fmt: skip


@pytest.fixture(scope="session")
def large_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new policy of some 240 MB."""
    return create_policy(tmp_path_factory.mktemp("large"), LARGE)


@pytest.fixture
def tiny(tiny_folder: Path) -> OpenVLAPolicy:
    return load(tiny_folder)


@pytest.fixture
def broken(tiny_folder: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the tiny folder whose config.json has other values."""

    def copy(**changes: object) -> Path:
        folder = tmp_path / "broken"
        folder.mkdir()
        for file in tiny_folder.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        config = json.loads((folder / "config.json").read_text()) | changes
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return copy


# Peak resident memory (VmHWM) above that after the imports, in bytes; a small load first warms what torch allocates.
@pytest.fixture
def folder_of_four(tiny_folder: Path, broken: Callable[..., Path]) -> Path:
    """The tiny policy with four actions an answer."""
    ours = json.loads((tiny_folder / "config.json").read_text())["vla_robot"]
    return broken(vla_robot={**ours, "chunk": 4})


@pytest.fixture(scope="session")
def by_transformers() -> Callable[..., tuple[list[int], float]]:
    """Greedy over the action rows, as transformers' own forward pass on the whole sequence says each token after all
    those before it; and the narrowest lead that a token had over the next best."""

    def say(
        model: Any, prompt: torch.Tensor, tokens: int, first: int, end: int, prefix: Sequence[int] = ()
    ) -> tuple[list[int], float]:
        said, lead = list(prefix), math.inf
        while len(said) < tokens:
            embedded = model.model.embed_tokens(torch.tensor(said, dtype=torch.int64))
            hidden = model.model(inputs_embeds=torch.cat([prompt, embedded])[None], use_cache=False).last_hidden_state
            (best, second), indices = model.lm_head(hidden[0, -1])[first:end].topk(2)
            said.append(first + int(indices[0]))
            lead = min(lead, float(best - second))
        return said, lead

    return say


_MEASURE = """
import os, sys
from pathlib import Path
from typing import Any
from vla_robot.policy.openvla.policy import load
from vla_robot.policy.vla.loading import Loading

def resident(field):
    line = next(l for l in open("/proc/self/status") if l.startswith(field))
    return int(line.split()[1]) * 1024

small, large = Path(sys.argv[1]), Path(sys.argv[2])
for dtype in sys.argv[3:]:
    child = os.fork()
    if child == 0:
        load(small, Loading(dtype=dtype))
        before = resident("VmRSS")
        policy = load(large, Loading(dtype=dtype))
        print(dtype, resident("VmHWM") - before, policy.memory_bytes())
        sys.exit()
    if os.waitpid(child, 0)[1]:
        sys.exit(1)
"""


@pytest.fixture(scope="session")
def loading_peak() -> Callable[[Path, Path, str], tuple[int, int]]:
    """In a process of its own: a small folder, a large one and a precision -> bytes of the large one's loading at its
    peak, self-test included, and of its weights. Both precisions are measured in forks of one process, and kept."""

    @functools.cache
    def both(small: Path, large: Path) -> dict[str, tuple[int, int]]:
        command = [sys.executable, "-c", _MEASURE, str(small), str(large), "float32", "bfloat16"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        lines = (line.split() for line in done.stdout.splitlines())
        return {dtype: (int(peak), int(weights)) for dtype, peak, weights in lines}

    return lambda small, large, dtype: both(small, large)[dtype]
