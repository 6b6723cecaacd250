"""Policy folders of lerobot's, written once for all tests here, and a computer without a network."""

from __future__ import annotations

import functools
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lerobot")
pytest.importorskip("torch")

from vla_robot.policy.kinds import load_policy
from vla_robot.policy.lerobot.policy import LeRobotPolicy
from vla_robot.recipe.policy import LeRobotRecipe

from . import lerobot_folders as write


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two demonstrations of our recorder."""
    return write.record(tmp_path_factory.mktemp("demos") / "lift")


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A recipe's table [hub]: a tokenizer, and a vision-language model with its weights."""
    root = tmp_path_factory.mktemp("hub")
    return {
        write.PALIGEMMA: write.tokenizer(root / "paligemma"),
        write.SMOLVLM: write.smolvlm(root / "smolvlm", weights=True),
    }


@pytest.fixture(scope="session")
def folder(
    dataset: Path, hub: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Path]]:
    """`folder(kind)`: the folder of a policy, which lerobot wrote; nobody changes it."""
    root = tmp_path_factory.mktemp("policies")
    makers: dict[str, Callable[[], Path]] = {
        "act": lambda: write.train(write.act_config(), dataset, root / "act"),
        "diffusion": lambda: write.train(write.diffusion_config(), dataset, root / "diffusion"),
        "smolvla": lambda: write.save(
            write.smolvla_config(hub[write.SMOLVLM]), root / "smolvla", hub[write.SMOLVLM], write.SMOLVLM
        ),
        **{
            kind: lambda kind=kind: write.save(
                write.pi_config(kind), root / kind, hub[write.PALIGEMMA], write.PALIGEMMA
            )
            for kind in ("pi0", "pi05")
        },
    }
    with write.tiny_paligemma():
        yield functools.cache(lambda kind: makers[kind]())


@pytest.fixture(scope="session")
def load(folder: Callable[[str], Path], hub: dict[str, Path]) -> Callable[..., LeRobotPolicy]:
    """`load(kind, ...)`: the policy behind our port, by a recipe."""

    def make(kind: str, **more: Any) -> LeRobotPolicy:
        recipe = LeRobotRecipe(**{"checkpoint": folder(kind), "hub": hub, **more})
        policy = load_policy(recipe, write.ARM)
        assert isinstance(policy, LeRobotPolicy)
        return policy

    return make


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every attempt to reach a computer, this one included, is an error of the test."""

    def refuse(*_: object, **__: object) -> Any:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
