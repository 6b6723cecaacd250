"""`vla serve` from the command line: a process of its own, driven by the same client as a robot's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from waiting import eventually

from vla_robot.cli.main import main
from vla_robot.core.messages import Observation
from vla_robot.serve.policy.client import RemotePolicy


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["expert"], "needs one with weights"),
        (["hold"], "kind 'hold', and a server needs one with weights"),
        (["openvla_nan"], "did you mean 'openvla_nano'"),
        (["tcp://127.0.0.1:5580"], "kind 'remote'"),
        (["openvla_nano", "--max-batch", "0"], "at least one row"),
        (["openvla_nano", "--rest", "70000"], "a port, 0 to 65535"),
        (["openvla_nano", "--replicas", "0"], "1 to 64 processes"),
        (["openvla_nano", "--metrics", "here"], "a port of this computer"),
        (["expert", "--replicas", "2"], "needs one with weights"),
        (["openvla_nano", "--bind", "tcp://0.0.0.0:5580"], "key"),
        (["openvla_nano", "--bind", "nonsense"], "is not an address"),
    ],
)
def test_what_cannot_be_served_is_told_before_anything_starts(
    arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    free = [] if "--bind" in arguments else ["--bind", "tcp://127.0.0.1:0"]
    assert main(["serve", *arguments, *free]) == 2
    assert reason in capsys.readouterr().err


def test_a_served_policy_answers_as_it_does_here_and_ends_with_its_counts(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    import vla_robot

    command = [sys.executable, "-P", "-m", "vla_robot.cli.main", "serve", "openvla_nano", "--rest", "0"]
    command += ["--bind", "tcp://127.0.0.1:0", "--json", str(tmp_path / "serve.json")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(4)]
        address = lines[2].partition("listening on ")[2].strip()
        assert "POST http://127.0.0.1:" in lines[3]
        with RemotePolicy(address) as policy:
            assert policy.embodiment is not None
            scene = _scene(policy)
            answer = policy.act([scene, scene])
        process.terminate()
        process.communicate(timeout=120)
    assert process.returncode == 0
    alone = vla_robot.load_policy(Path(__file__).resolve().parents[2] / "policies" / "openvla_nano").act([scene])
    for chunk in answer:
        np.testing.assert_allclose(chunk.actions, alone[0].actions, atol=1e-12)
    status = json.loads((tmp_path / "serve.json").read_text())["status"]
    assert status["counts"] == {"answered": 2}


@pytest.mark.slow
def test_replicas_answer_as_the_policy_does_here_also_when_one_is_killed(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    import vla_robot

    command = [sys.executable, "-P", "-m", "vla_robot.cli.main", "serve", "openvla_nano", "--replicas", "2"]
    command += ["--bind", "tcp://127.0.0.1:0", "--device", "cpu", "--json", str(tmp_path / "serve.json")]
    command += ["--metrics", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(5)]
        url = lines[3].partition("metrics: ")[2].strip()
        assert "2 replicas: processes " in lines[4]
        with RemotePolicy(lines[2].partition("listening on ")[2].strip(), answer_timeout_s=120) as policy:
            scene = _scene(policy)
            answers = policy.act([scene] * 4)
            os.kill(policy.status()["replicas"][0]["pid"], signal.SIGKILL)
            answers += policy.act([scene] * 4)
        eventually(lambda: 'vla_serve_requests_total{outcome="answered"} 8.0' in scraped(url))
        process.terminate()
        process.communicate(timeout=120)
    assert process.returncode == 0
    folder = Path(__file__).resolve().parents[2] / "policies" / "openvla_nano"
    alone = vla_robot.load_policy(folder, device="cpu").act([scene])
    assert len(answers) == 8
    for chunk in answers:
        np.testing.assert_allclose(chunk.actions, alone[0].actions, atol=1e-12)
    status = json.loads((tmp_path / "serve.json").read_text())["status"]
    assert status["counts"]["answered"] == 8
    assert len(status["replicas"]) == 2


def scraped(url: str) -> str:
    with urllib.request.urlopen(url, timeout=60) as answer:
        return answer.read().decode()


def _scene(policy: RemotePolicy) -> Observation:
    assert policy.embodiment is not None
    rng = np.random.default_rng(0)
    frames = {c.name: rng.integers(0, 256, (c.height, c.width, 3), np.uint8) for c in policy.embodiment.cameras}
    state = np.zeros(len(policy.embodiment.state))
    return Observation(frames, state, "lift the red cube", stamp_ns=1, step=0)
