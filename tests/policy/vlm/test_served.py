"""`vla serve FOLDER` of each family: batches, OpenVLA's REST requests and openpi's clients get the policy's actions."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vla_robot.policy.kinds import load_policy
from vla_robot.recipe.policy_source import find_policy
from vla_robot.serve.interop.openpi_schema import ExampleWords
from vla_robot.serve.interop.openpi_server import OpenpiServer
from vla_robot.serve.interop.openpi_wire import pack, unpack
from vla_robot.serve.interop.rest import RestServer, pack_array, unpack_array
from vla_robot.serve.policy.batcher import Batcher, Line, Request
from vla_robot.serve.policy.load import build_served_policy
from vla_robot.serve.policy.server import answering

from .conftest import PROCESSORS
from .tiny_vlms import CAMERAS, arm, create, observation

QUICK = ("paligemma", "qwen2_5_vl", "smolvlm")
"""Frames of one size, of any size, and cut into parts."""


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in PROCESSORS]
)
def test_batches_and_other_projects_clients_get_the_policys_actions(tmp_path: Path, name: str) -> None:
    from websockets.sync.client import connect

    source = find_policy(str(create(tmp_path / name, name, use_state=True)))
    served = build_served_policy(source)
    assert served.embodiment == arm()
    assert served.prepare is None, "on a CPU the model's thread and one that prepares would share the cores"
    policy: Any = load_policy(source.recipe, None)
    seen = [observation(number) for number in range(3)]
    alone = [policy.act([each])[0].actions for each in seen]

    batcher, answers = Batcher(served.act, Line(4, 0)), dict[int, Any]()
    for row, asked in enumerate(seen):
        batcher.submit(Request(row, asked, partial(answers.__setitem__, row)))
    batcher.work()
    assert batcher.status()["batches"] == {"3": 1}
    for row, expected in enumerate(alone):
        np.testing.assert_array_equal(answers[row].actions, expected)

    model: threading.Thread = answering(batcher)
    try:
        np.testing.assert_array_equal(_by_rest(batcher, seen[0]), alone[0])
        request = {
            "observation/image": seen[1].images[CAMERAS[0]],
            "observation/wrist_image": seen[1].images[CAMERAS[1]],
            "observation/state": seen[1].state,
            "prompt": seen[1].instruction,
        }
        with (
            contextlib.closing(OpenpiServer(batcher, name, ExampleWords(CAMERAS, arm()), 0)) as server,
            connect(server.url) as connection,
        ):
            connection.recv()  # the meaning of the actions
            connection.send(pack(request))
            frame = connection.recv()
        assert isinstance(frame, bytes), frame
        np.testing.assert_array_equal(unpack(frame)["actions"], alone[1])
    finally:
        batcher.close()
        model.join()


def _by_rest(batcher: Batcher, seen: Any) -> list[Any]:
    images = {"full_image": pack_array(seen.images[CAMERAS[0]]), "wrist_image": pack_array(seen.images[CAMERAS[1]])}
    request = {**images, "state": pack_array(seen.state), "instruction": seen.instruction}
    with contextlib.closing(RestServer(batcher, "family", CAMERAS, 0)) as server:
        connection = http.client.HTTPConnection("127.0.0.1", int(server.url.split(":")[2].split("/")[0]), timeout=60)
        connection.request("POST", "/act", json.dumps(request), {"Content-Type": "application/json"})
        body: Any = json.loads(connection.getresponse().read())
        connection.close()
    return [unpack_array(body, "row")]  # of one action, not a list of rows
