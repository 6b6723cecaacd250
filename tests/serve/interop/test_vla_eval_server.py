"""Our server in vla-eval's protocol, spoken to frame by frame, and by vla-eval itself."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import threading
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import PIL.Image
import pytest
from peer_programs import published_client, served
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from vla_robot.core.embodiment import Dim
from vla_robot.core.errors import ContractError, TransportError
from vla_robot.core.messages import ActionChunk, Observation
from vla_robot.recipe import read
from vla_robot.recipe.policy import OpenpiRecipe, PolicyRecipe
from vla_robot.serve.interop.vla_eval_server import EvalSchema, EvalServer
from vla_robot.serve.interop.vla_eval_wire import EvalMessage, pack, unpack
from vla_robot.testing import toy_embodiment

IMAGE = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)
AXES = ("dx", "dy", "dz", "droll", "dpitch", "dyaw")
POSE = [
    *(Dim(name, "m", -1.0, 1.0) for name in ("x", "y", "z")),
    *(Dim(name, "rad", -6.3, 6.3) for name in ("rx", "ry", "rz")),
    Dim("gripper_width", "m", 0.0, 0.08),
]
ARM = toy_embodiment(axes=AXES, state=POSE, cameras=("front", "wrist"), height=8, width=12, rate_hz=20.0)
IN_THE_WORLD = [
    *(Dim(f"world_{name}", "m", -2.0, 2.0) for name in "xyz"),
    *(Dim(f"hand_{name}", "rad", -6.3, 6.3) for name in ("rx", "ry", "rz")),
    *(Dim(f"finger_{name}", "m", -0.05, 0.05) for name in ("left", "right")),
]
LIBERO_ARM = toy_embodiment(axes=AXES, state=IN_THE_WORLD, cameras=("front", "wrist"), height=8, width=12, rate_hz=20.0)
LIBERO = {
    "images": {"agentview": IMAGE, "wrist": IMAGE + 1},
    "states": np.array([0.1, 0.2, 0.3, np.pi, 0.0, 0.0, 0.02, -0.02]),
    "task_description": "lift",
}


class Policy:
    """Answers with a chunk of two actions that name the observation; keeps what it sees, and the sizes of batches."""

    def __init__(self, rows: int | None = None) -> None:
        self.seen: list[Observation] = []
        self.batches: list[int] = []
        self._rows = rows

    def __call__(self, observations: Sequence[Observation], keys: Sequence[str | None]) -> list[ActionChunk]:
        self.seen += observations
        self.batches.append(len(observations))
        if any(o.instruction == "nonsense" for o in observations):
            raise ContractError("the policy was trained on another task.")
        actions = np.array([[0.05, 0, 0, 0, 0, 0.25, 1.0], [0, 0.025, 0, 0, 0, 0, 0.0]])
        return [ActionChunk(actions, o.stamp_ns, o.step, rows=self._rows) for o in observations]


Start = Callable[..., str]


@pytest.fixture
def serving() -> Iterator[Start]:
    with contextlib.ExitStack() as stack:

        def start(policy: Policy, schema: EvalSchema | None = None, max_wait_ns: int = 0) -> str:
            words = schema or EvalSchema(("front", "wrist"), ARM)
            return stack.enter_context(served(policy, lambda batcher: EvalServer(batcher, words, 0), max_wait_ns))

        yield start


def libero_schema() -> EvalSchema:
    recipe = read(PolicyRecipe, "openpi_libero")
    assert isinstance(recipe, OpenpiRecipe)
    return EvalSchema(("front", "wrist"), LIBERO_ARM, recipe.peer)


def ask(connection: ClientConnection, kind: str, payload: Mapping[str, Any], seq: int = 1) -> EvalMessage:
    connection.send(pack(kind, payload, seq))
    frame = connection.recv()
    assert isinstance(frame, bytes)
    answer = unpack(frame)
    assert answer.seq == seq
    return answer


@contextlib.contextmanager
def episode(url: str) -> Iterator[ClientConnection]:
    with connect(url, open_timeout=30) as connection:
        assert ask(connection, "hello", {"harness_version": "0.8.0", "protocol_version": 1}).type == "hello"
        connection.send(pack("episode_start", {"task": {"name": "lift"}}, 2))
        yield connection


def observed(**change: Any) -> dict[str, Any]:
    return {**LIBERO, "states": np.arange(7.0), **change}


def test_hello_says_what_the_benchmark_must_send_and_that_units_are_the_policys_own(serving: Start) -> None:
    with connect(serving(Policy()), open_timeout=30) as connection:
        said = ask(connection, "hello", {}, seq=9).payload
    assert (said["protocol_version"], said["model_server"]) == (1, "vla_robot")
    assert said["observation_params"] == {"send_wrist_image": True, "send_state": True}
    assert said["action_spec"]["vla_robot"]["format"].startswith("dx[m] dy[m]")
    assert "action_spec" not in libero_schema().hello()
    assert EvalSchema((), None).hello()["observation_params"] == {}


def test_a_chunk_answers_one_observation_after_the_other_until_the_episode_ends(serving: Start) -> None:
    policy = Policy()
    with episode(serving(policy)) as connection:
        first, second = (ask(connection, "observation", observed(), seq).payload["actions"] for seq in (3, 4))
        assert first.dtype == np.float32 and first.tolist() == [np.float32(0.05), 0, 0, 0, 0, 0.25, 1]
        assert second.tolist() == [0, np.float32(0.025), 0, 0, 0, 0, 0]
        assert len(policy.seen) == 1
        np.testing.assert_array_equal(ask(connection, "observation", observed(), 5).payload["actions"], first)
        connection.send(pack("episode_end", {"success": True}, 6))
        connection.send(pack("episode_start", {"task": {}}, 7))
        np.testing.assert_array_equal(ask(connection, "observation", observed(), 8).payload["actions"], first)
    assert len(policy.seen) == 3
    np.testing.assert_array_equal(policy.seen[0].images["front"], IMAGE)
    np.testing.assert_array_equal(policy.seen[0].images["wrist"], IMAGE + 1)
    assert (policy.seen[0].instruction, policy.seen[0].state.tolist()) == ("lift", [*range(7)])


def test_the_horizon_of_a_chunk_holds(serving: Start) -> None:
    policy = Policy(rows=1)
    with episode(serving(policy)) as connection:
        for seq in (3, 4):
            assert ask(connection, "observation", observed(), seq).payload["actions"][0] == np.float32(0.05)
    assert len(policy.seen) == 2


def test_libero_gets_fractions_of_its_largest_step_and_the_policy_metres_and_radians(serving: Start) -> None:
    policy = Policy()
    with episode(serving(policy, libero_schema())) as connection:
        actions = [ask(connection, "observation", LIBERO, seq).payload["actions"].tolist() for seq in (3, 4)]
    np.testing.assert_allclose(actions, [[1, 0, 0, 0, 0, 0.5, -1], [0, 0.5, 0, 0, 0, 0, 1]])  # -1 open, 1 closed
    (seen,) = policy.seen
    np.testing.assert_array_equal(seen.state, LIBERO["states"])
    np.testing.assert_array_equal(
        seen.images["wrist"], (IMAGE + 1)[:, ::-1]
    )  # theirs are mirrored, our worlds' are not


def test_a_checkpoint_that_mirrors_is_not_given_the_benchmarks_mirrored_frames_twice(serving: Start) -> None:
    policy = Policy()
    with episode(serving(policy, EvalSchema(("front", "wrist"), ARM, mirror=True))) as connection:
        ask(connection, "observation", observed(), 3)
    np.testing.assert_array_equal(policy.seen[0].images["front"], IMAGE[:, ::-1])


def test_the_policys_own_camera_names_come_first_and_the_benchmarks_order_else(serving: Start) -> None:
    policy = Policy()
    images = {"wrist": IMAGE + 1, "top": IMAGE + 2, "front": IMAGE}
    with episode(serving(policy)) as connection:
        ask(connection, "observation", observed(images=images), 3)
    np.testing.assert_array_equal(policy.seen[0].images["front"], IMAGE)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"images": {"agentview": IMAGE}}, "cameras front, wrist, but the benchmark sends agentview"),
        ({"images": None}, "has a map 'images'"),
        ({"states": np.arange(6.0)}, "6 numbers"),
        ({"task_description": None}, "it is the instruction"),
        ({"task_description": "nonsense"}, "trained on another task"),
        ({"images": {"agentview": IMAGE[..., 0], "wrist": IMAGE}}, "must be an image"),
    ],
)
def test_an_observation_without_an_action_is_an_error_and_the_next_one_is_answered(
    serving: Start, change: dict[str, Any], says: str
) -> None:
    with episode(serving(Policy())) as connection:
        answer = ask(connection, "observation", observed(**change), 3)
        assert answer.type == "error" and says in answer.payload["error"]
        assert ask(connection, "observation", observed(), 4).type == "action"
        assert "unknown type of message 'dance'" in ask(connection, "dance", {}, 5).payload["error"]


def test_images_arrive_whole_in_each_of_the_formats() -> None:
    def image(form: str, **more: Any) -> dict[str, Any]:
        file = io.BytesIO()
        if form != "raw":
            PIL.Image.fromarray(IMAGE).save(file, form.upper())
        data = IMAGE.tobytes() if form == "raw" else file.getvalue()
        return {"__image__": True, "format": form, "data": data, "shape": [8, 12, 3], **more}

    def read_back(table: dict[str, Any]) -> Any:
        message = {"type": "observation", "payload": {"image": table}, "seq": 1, "timestamp": 0.0}
        return unpack(msgpack.packb(message)).payload["image"]

    np.testing.assert_array_equal(read_back(image("png")), IMAGE)
    np.testing.assert_array_equal(read_back(image("raw", dtype="|u1")), IMAGE)
    assert read_back(image("jpeg")).shape == IMAGE.shape
    for broken in (image("gif"), {**image("png"), "data": b"no"}, {**image("jpeg"), "data": b"no"}, {"__image__": 1}):
        with pytest.raises(TransportError):
            read_back(broken)


@pytest.mark.parametrize("frame", ["text", b"\xc1", msgpack.packb({"type": "hello"}), msgpack.packb([1])])
def test_what_is_no_message_ends_the_connection_with_the_reason(serving: Start, frame: str | bytes) -> None:
    with connect(serving(Policy()), open_timeout=30) as connection:
        connection.send(frame)
        told = connection.recv()
        assert isinstance(told, bytes) and unpack(told).type == "error"
        with pytest.raises(ConnectionClosed):
            connection.recv()


def test_observations_of_several_connections_share_a_batch(serving: Start) -> None:
    policy, count = Policy(), 4
    url = serving(policy, max_wait_ns=2_000_000_000)
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(episode(url)) for _ in range(count)]
        threads = [threading.Thread(target=ask, args=(c, "observation", observed(), 3)) for c in connections]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sum(policy.batches) == count and max(policy.batches) > 1


def test_health_says_that_the_policy_is_ready(serving: Start) -> None:
    url = serving(Policy()).replace("ws://", "http://")
    with urllib.request.urlopen(f"{url}/health", timeout=30) as answer:
        assert json.load(answer) == {"status": "ok"}


PEER_SCRIPT = """
import sys

import anyio
import numpy as np

from vla_eval.benchmarks.base import StepBenchmark, StepResult
from vla_eval.connection import Connection
from vla_eval.protocol.numpy_codec import set_image_format
from vla_eval.runners.sync_runner import SyncEpisodeRunner


class Line(StepBenchmark):
    '''A point that must go 0.2 to the right, in a suite of one task; images in the format of the command line.'''

    def __init__(self, send_wrist_image=False, send_state=False):
        super().__init__()
        self.wrist, self.state, self.x = send_wrist_image, send_state, 0.0

    def get_tasks(self):
        return [{"name": "lift"}]

    def reset(self, task):
        self.x = 0.0
        return self.x

    def step(self, action):
        actions = action["actions"]
        assert actions.shape == (7,) and actions.dtype == np.float32, actions
        self.x += float(actions[0]) * 0.05
        return StepResult(self.x, 0.0, self.x >= 0.2, {})

    def make_obs(self, x, task):
        image = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)
        seen = {"images": {"agentview": image}, "task_description": task["name"]}
        if self.wrist:
            seen["images"]["wrist"] = image + 1
        if self.state:
            seen["states"] = np.array([x, 0, 0, np.pi, 0, 0, 0.02, -0.02])
        return seen

    def get_step_result(self, result):
        return {"success": result.done}


async def run(url, form):
    set_image_format(form)
    async with Connection(url) as connection:
        benchmark = Line(**connection.server_info["observation_params"])
        for _ in range(2):
            result = await SyncEpisodeRunner().run_episode(benchmark, {"name": "lift"}, connection, max_steps=20)
            assert result["metrics"]["success"], result
        try:
            await connection.act({"images": {}, "task_description": "lift"})
        except RuntimeError as error:
            assert "observation_failed" in str(error), error
        else:
            raise SystemExit("an error went unnoticed")


async def main():
    async with anyio.create_task_group() as group:
        for form in ("png", "raw"):
            group.start_soon(run, sys.argv[1], form)


anyio.run(main)
print("vla-eval is content")
"""


@pytest.fixture(scope="session")
def vla_eval(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with vla-eval. $VLA_EVAL_PYTHON names one that exists already."""
    return published_client(tmp_path_factory.mktemp("vla_eval"), "VLA_EVAL_PYTHON", ("vla-eval==0.8.0",))


@pytest.mark.slow
def test_vla_eval_itself_runs_episodes_with_our_policy(serving: Start, vla_eval: Path) -> None:
    policy = Policy()
    url = serving(policy, libero_schema())
    done = subprocess.run([str(vla_eval), "-c", PEER_SCRIPT, url], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "is content" in done.stdout
    np.testing.assert_array_equal(policy.seen[0].images["wrist"], (IMAGE + 1)[:, ::-1])
    assert policy.seen[0].instruction == "lift"
