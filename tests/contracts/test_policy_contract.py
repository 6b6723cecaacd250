"""What every policy promises, asked of each that needs no weights. A new one joins by one line in KINDS."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from vla_robot.core.embodiment import Dim, Embodiment
from vla_robot.core.messages import Observation
from vla_robot.core.ports import Policy
from vla_robot.loop.takeover import Takeover
from vla_robot.policy.adapter import ObservationAdapter
from vla_robot.policy.scripted.experts import ScriptedExpert, lift
from vla_robot.policy.scripted.perturb import Perturbation, PerturbedPolicy
from vla_robot.policy.scripted.simple import HoldPolicy, RandomPolicy
from vla_robot.policy.scripted.waypoints import ReachPolicy
from vla_robot.record.collect import WithoutTruth
from vla_robot.serve.policy.batcher import Batcher, Line
from vla_robot.serve.policy.client import RemotePolicy
from vla_robot.serve.policy.server import PolicyServer, Served, answering
from vla_robot.serve.policy.shared_policy import SharedPolicy
from vla_robot.testing import (
    TOOL_AXES,
    FunctionPolicy,
    ScriptedTeleoperator,
    check_policy,
    toy_embodiment,
    toy_observation,
)
from vla_robot.transport.sockets import ServerSocket
from vla_robot.transport.wake import Wake

POSE = tuple(Dim(name, "m", -1.0, 1.0) for name in ("x", "y", "z", "rx", "ry", "rz"))
ARM = toy_embodiment(axes=TOOL_AXES, state=POSE)
WANTED = toy_embodiment(axes=TOOL_AXES, state=POSE[:2])
TRUTH = {
    "eef_pos": np.array([0.1, 0.0, 0.9]),
    "gripper_width": np.array([0.08]),
    "cube_pos": np.array([0.0, 0.05, 0.82]),
    "cube_mat": np.eye(3).ravel(),
}
SEEN = [
    Observation(o.images, o.state, o.instruction, o.stamp_ns, o.step, TRUTH)
    for o in (toy_observation(ARM, step, x=0.1 * step, stamp_ns=1000 + step) for step in range(3))
]
MOVES = FunctionPolicy(lambda o: np.array([[0.01 * o.state[0], *[0.0] * 5, 1.0]] * 2))

ONE_EPISODE = {"batched": False}
"""What draws from a generator, or remembers an episode, answers a batch as consecutive questions."""
KINDS: dict[str, tuple[Callable[[], Policy], dict[str, Any]]] = {
    "hold": (lambda: HoldPolicy(ARM.action), {}),
    "random": (lambda: RandomPolicy(ARM.action), ONE_EPISODE),
    "reach": (lambda: ReachPolicy(ARM, [[0.1, 0.2, 0.3, 0.0, 0.0, 0.0, 1.0]]), ONE_EPISODE),
    "expert": (lambda: ScriptedExpert(lift, ARM.action), {}),
    "perturbed": (lambda: PerturbedPolicy(MOVES, ARM.action, Perturbation()), ONE_EPISODE),
    "adapter": (lambda: ObservationAdapter(MOVES, WANTED, ARM), {}),
    "without truth": (lambda: WithoutTruth(MOVES), {}),
    "takeover": (lambda: Takeover(MOVES, ScriptedTeleoperator(), ARM, row_by_row=False), ONE_EPISODE),
    "function": (lambda: MOVES, {}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_policy_keeps_its_contract(kind: str) -> None:
    make, options = KINDS[kind]
    check_policy(make, ARM, SEEN, **options)


def test_a_seat_at_a_shared_policy_keeps_it() -> None:
    with SharedPolicy(MOVES, max_batch=4) as shared:
        check_policy(shared.seat, ARM, SEEN)


def test_a_policy_behind_a_socket_keeps_it() -> None:
    batcher, wake, stop = Batcher(_answers, Line(8, 2_000_000)), Wake(), threading.Event()
    with ServerSocket(wake=wake) as socket:
        model = answering(batcher)
        server = PolicyServer(Served("toy", ARM, 8), batcher, socket, wake)
        network = threading.Thread(target=server.serve, args=(stop.is_set,))
        network.start()
        try:
            with RemotePolicy(socket.address) as policy:
                check_policy(lambda: policy, ARM, SEEN)
        finally:
            stop.set()
            network.join()
            batcher.close()
            model.join()
            wake.close()


def _answers(observations: Sequence[Observation], keys: Sequence[str | None]) -> Any:
    return MOVES.act(observations)


def test_an_embodiment_of_another_width_is_told_from_this_one() -> None:
    """Lest a check that looks at nothing passes for a policy of any arm."""
    narrow: Embodiment = toy_embodiment()
    with pytest.raises(Exception, match=r"where D is 2"):
        check_policy(lambda: HoldPolicy(ARM.action), narrow)
