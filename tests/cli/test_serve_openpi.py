"""`vla serve --openpi`: a trained policy answers openpi's clients as it answers here."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from websockets.sync.client import connect

from vla_robot.cli.main import main
from vla_robot.core.messages import Observation
from vla_robot.serve.interop.openpi_wire import pack, unpack

NANO = Path(__file__).resolve().parents[2] / "policies" / "openvla_nano"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--openpi", "70000"], "--openpi 70000: a port, 0 to 65535"),
        (["--openpi-words", "openpi_libero"], "--openpi PORT, which is missing"),
        (["--openpi", "0", "--openpi-words", "hold"], "has no table [peer]"),
        (["--openpi", "0", "--openpi-words", "openpi_libeero"], "did you mean 'openpi_libero'"),
        (["--vla-eval", "-1"], "--vla-eval -1: a port, 0 to 65535"),
        (["--vla-eval-words", "openpi_libero"], "--vla-eval PORT, which is missing"),
        (["--vla-eval", "0", "--vla-eval-words", "hold"], "--vla-eval-words hold: this recipe has no table [peer]"),
    ],
)
def test_what_cannot_be_answered_is_told_before_weights_are_read(
    options: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "openvla_nano", *options]) == 2
    assert reason in capsys.readouterr().err


@contextlib.contextmanager
def served() -> Iterator[str]:
    """The address that the program prints for openpi's clients."""
    command = [sys.executable, "-P", "-m", "vla_robot.cli.main", "serve", "openvla_nano", "--openpi", "0"]
    with subprocess.Popen([*command, "--bind", "tcp://127.0.0.1:0"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield next(line for line in process.stdout if "ws://" in line).split()[-1]
        finally:
            process.terminate()
            process.communicate(timeout=120)


@pytest.mark.slow
def test_an_openpi_client_gets_the_action_that_the_policy_gives_here() -> None:
    pytest.importorskip("torch")
    import vla_robot

    rng = np.random.default_rng(0)
    front, wrist = (rng.integers(0, 256, (224, 224, 3), np.uint8) for _ in range(2))
    request = {
        "observation/image": front,
        "observation/wrist_image": wrist,
        "observation/state": np.zeros(7),
        "prompt": "lift the red cube",
    }
    with served() as url, connect(url, max_size=None) as connection:
        told = connection.recv()
        connection.send(pack(request))
        answer = connection.recv()
    assert isinstance(told, bytes) and isinstance(answer, bytes)
    assert [d["name"] for d in unpack(told)["action"]] == ["dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper"]
    seen = Observation({"front": front, "wrist": wrist}, np.zeros(7), "lift the red cube", stamp_ns=1, step=0)
    (alone,) = vla_robot.load_policy(NANO).act([seen])
    np.testing.assert_allclose(unpack(answer)["actions"], alone.actions, atol=1e-12)
