"""`vla serve FOLDER`: our client, OpenVLA's REST requests and openpi's clients get the policy's actions, in batches."""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vla_robot.cli.build import build_policy
from vla_robot.core.errors import ContractError, OverdueError
from vla_robot.core.messages import ActionChunk, Observation
from vla_robot.policy.kinds import load_policy
from vla_robot.recipe.policy import LeRobotRecipe, RemoteRecipe
from vla_robot.recipe.policy_source import PolicySource, find_policy
from vla_robot.serve.interop.openpi_schema import ExampleWords
from vla_robot.serve.interop.openpi_server import OpenpiServer
from vla_robot.serve.interop.openpi_wire import pack, unpack
from vla_robot.serve.interop.rest import RestServer, pack_array, unpack_array
from vla_robot.serve.policy.batcher import Batcher, Line, Request
from vla_robot.serve.policy.client import RemotePolicy
from vla_robot.serve.policy.load import build_served_policy
from vla_robot.serve.policy.server import PolicyServer, Served, answering
from vla_robot.transport.sockets import ServerSocket
from vla_robot.transport.wake import Wake

from .lerobot_folders import ARM, observation

CAMERAS = ("front", "wrist")


@pytest.fixture(scope="module")
def served(
    folder: Callable[[str], Path], dataset: Path, hub: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], PolicySource]:
    """`served(kind)`: a folder with the embodiment of its dataset, as `vla serve` finds it."""

    def source(kind: str) -> PolicySource:
        path = shutil.copytree(folder(kind), tmp_path_factory.mktemp("served") / kind)
        shutil.copy(dataset / "meta" / "embodiment.json", path)
        found = find_policy(str(path))
        return found if kind in ("act", "diffusion") else PolicySource(LeRobotRecipe(checkpoint=path, hub=hub), path)

    return source


@pytest.fixture
def serve(served: Callable[[str], PolicySource]) -> Iterator[Callable[[str], tuple[Batcher, str]]]:
    """`serve(kind)` -> the batcher and the address of a server of that policy."""
    with contextlib.ExitStack() as stack:

        def start(kind: str) -> tuple[Batcher, str]:
            policy = build_served_policy(served(kind))
            assert policy.embodiment == ARM
            batcher, wake, stop = Batcher(policy.act, Line(4, 200_000_000)), Wake(), threading.Event()
            socket = stack.enter_context(ServerSocket(wake=wake))
            model = answering(batcher)
            network = threading.Thread(
                target=PolicyServer(Served(kind, ARM, 4), batcher, socket, wake).serve, args=(stop.is_set,)
            )
            network.start()

            def end() -> None:
                stop.set()
                network.join()
                batcher.close()
                model.join()
                wake.close()

            stack.callback(end)
            return batcher, socket.address

        yield start


def here(source: PolicySource, *seen: Observation) -> list[ActionChunk]:
    """The answers of the same policy without a server, to each alone; a server's episodes have the seed 0."""
    assert isinstance(source.recipe, LeRobotRecipe)
    policy = load_policy(source.recipe, ARM)
    return [policy.act([o])[0] for o in seen]


@pytest.mark.parametrize("kind", ["act", "smolvla", "pi0", "pi05"])
def test_four_rows_in_one_batch_are_the_rows_alone(kind: str, served: Callable[[str], PolicySource]) -> None:
    source = served(kind)
    policy = build_served_policy(source)
    assert policy.embodiment == ARM and policy.prepare is None
    batcher, answers = Batcher(policy.act, Line(4, 0)), dict[int, Any]()
    seen = [observation(step) for step in range(4)]
    for row, asked in enumerate(seen):
        batcher.submit(Request(row, asked, partial(answers.__setitem__, row)))
    batcher.work()
    assert batcher.status()["batches"] == {"4": 1}
    for row, alone in enumerate(here(source, *seen)):
        np.testing.assert_allclose(answers[row].actions, alone.actions, rtol=0, atol=1e-6)
        assert {"preprocess", "model", "postprocess"} <= set(answers[row].stages_ms)


def test_committed_actions_reach_a_served_policy(
    serve: Callable[[str], tuple[Batcher, str]], served: Callable[[str], PolicySource]
) -> None:
    _, address = serve("pi0")
    seen = observation(3, committed=2)
    with RemotePolicy(address) as policy:
        assert policy.embodiment == ARM
        (answer,) = policy.act([seen])
    (alone,) = here(served("pi0"), seen)
    assert answer.conditioned and alone.conditioned
    np.testing.assert_allclose(answer.actions, alone.actions, rtol=0, atol=1e-6)


def test_a_robot_that_does_not_fit_is_refused_and_a_late_request_is_dropped(
    serve: Callable[[str], tuple[Batcher, str]],
) -> None:
    batcher, address = serve("act")
    with pytest.raises(ContractError, match="the policy was trained at 10 Hz, the world runs at 20 Hz"):
        build_policy(PolicySource(RemoteRecipe(address=address), None), None, replace(ARM, rate_hz=20.0))
    with pytest.raises(OverdueError, match="deadline passed"):
        batcher.ask(observation(0), timeout_s=-0.001)
    with pytest.raises(ContractError, match="the state must be 3 finite numbers"):
        batcher.ask(replace(observation(0), state=np.zeros(2)))


def test_openvlas_rest_requests_are_answered(
    serve: Callable[[str], tuple[Batcher, str]], served: Callable[[str], PolicySource]
) -> None:
    batcher, _ = serve("act")
    seen = observation(0)
    images = {"full_image": pack_array(seen.images["front"]), "wrist_image": pack_array(seen.images["wrist"])}
    request = {**images, "state": pack_array(seen.state), "instruction": seen.instruction}
    with contextlib.closing(RestServer(batcher, "act", CAMERAS, 0)) as server:
        connection = http.client.HTTPConnection("127.0.0.1", int(server.url.split(":")[2].split("/")[0]), timeout=60)
        connection.request("POST", "/act", json.dumps(request), {"Content-Type": "application/json"})
        body: Any = json.loads(connection.getresponse().read())
        connection.close()
    (alone,) = here(served("act"), observation(0))
    np.testing.assert_allclose([unpack_array(row, "row") for row in body], alone.actions, rtol=0, atol=1e-6)


def test_openpis_clients_are_answered(
    serve: Callable[[str], tuple[Batcher, str]], served: Callable[[str], PolicySource]
) -> None:
    from websockets.sync.client import connect

    batcher, _ = serve("act")
    seen = observation(0)
    request = {
        "observation/image": seen.images["front"],
        "observation/wrist_image": seen.images["wrist"],
        "observation/state": seen.state,
        "prompt": seen.instruction,
    }
    with (
        contextlib.closing(OpenpiServer(batcher, "act", ExampleWords(CAMERAS, ARM), 0)) as server,
        connect(server.url) as connection,
    ):
        connection.recv()  # the meaning of the actions
        connection.send(pack(request))
        frame = connection.recv()
    assert isinstance(frame, bytes), frame
    (alone,) = here(served("act"), observation(0))
    np.testing.assert_allclose(unpack(frame)["actions"], alone.actions, rtol=0, atol=1e-6)


def test_a_policy_that_reads_several_observations_is_not_served(served: Callable[[str], PolicySource]) -> None:
    with pytest.raises(ContractError, match="reads 2 observations for an answer, and a served request has one"):
        build_served_policy(served("diffusion"))
