"""The nouns of core survive the way through frames."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vla_robot.core import errors
from vla_robot.core.embodiment import MAX_RATE_HZ, MIN_RATE_HZ
from vla_robot.core.errors import RecipeError, TransportError, VlaError, WorldError
from vla_robot.core.messages import ActionChunk, Clamp, Observation, StepResult
from vla_robot.core.robot import Tick
from vla_robot.testing import toy_embodiment, toy_observation
from vla_robot.transport.bridge_codec import pack_tick, unpack_tick
from vla_robot.transport.codec import (
    ERRORS,
    MessageReader,
    pack_action_chunk,
    pack_embodiment,
    pack_error,
    pack_observation,
    pack_step_result,
    unpack_action_chunk,
    unpack_embodiment,
    unpack_error,
    unpack_observation,
    unpack_step_result,
)
from vla_robot.transport.wire import Message, decode, encode

EMBODIMENT = toy_embodiment(height=4, width=6)
OBSERVATION = toy_observation(EMBODIMENT)

names = st.text(min_size=1, max_size=6)
stamps = st.integers(0, 2**63 - 1)
numbers = st.floats(allow_nan=False)
finite = st.floats(allow_nan=False, allow_infinity=False)
images = arrays(np.uint8, st.tuples(st.integers(1, 4), st.integers(1, 4), st.just(3)))
vectors = arrays(np.float64, st.integers(0, 7), elements=numbers)
observations = st.builds(
    Observation,
    images=st.dictionaries(names, images, max_size=2),
    state=vectors,
    instruction=st.text(max_size=20),
    stamp_ns=stamps,
    step=st.integers(0, 10_000),
    privileged=st.dictionaries(names, vectors, max_size=2),
    committed=st.none() | arrays(np.float64, st.tuples(st.integers(0, 4), st.integers(1, 7)), elements=numbers),
    planned=st.none() | arrays(np.float64, st.tuples(st.integers(0, 4), st.integers(1, 7)), elements=numbers),
)
results = st.builds(
    StepResult,
    observation=observations,
    executed=vectors,
    success=st.booleans(),
    terminated=st.booleans(),
    truncated=st.booleans(),
    clamps=st.lists(st.builds(Clamp, names, names, finite, finite), max_size=3).map(tuple),
    command_ns=stamps,
)
chunks = st.builds(
    ActionChunk,
    actions=arrays(np.float64, st.tuples(st.integers(0, 4), st.integers(1, 7)), elements=numbers),
    stamp_ns=stamps,
    step=st.integers(0, 10_000),
    stages_ms=st.dictionaries(names, st.floats(0, 1e7), max_size=3),
    intervention=st.booleans(),
    conditioned=st.booleans(),
    entropy=st.none() | st.floats(0, 100),
    chunk_gap=st.none() | st.floats(0, 1),
)


def carried(body: dict[str, Any]) -> MessageReader:
    return MessageReader(decode([bytes(frame) for frame in encode(Message("test", 1, body))]).body, "test")


@given(observations)
def test_an_observation_survives(observation: Observation) -> None:
    np.testing.assert_equal(vars(unpack_observation(carried(pack_observation(observation)))), vars(observation))


@given(results)
def test_a_step_result_survives(result: StepResult) -> None:
    arrived = unpack_step_result(carried(pack_step_result(result)))
    np.testing.assert_equal(
        {**vars(arrived), "observation": vars(arrived.observation)},
        {**vars(result), "observation": vars(result.observation)},
    )


@given(chunks, st.data())
def test_a_chunk_survives(chunk: ActionChunk, data: st.DataObject) -> None:
    if len(chunk.actions):
        chunk = replace(chunk, rows=data.draw(st.none() | st.integers(1, len(chunk.actions))))
    np.testing.assert_equal(vars(unpack_action_chunk(carried(pack_action_chunk(chunk)))), vars(chunk))


@pytest.mark.parametrize(("name", "most"), [("entropy", 100.0), ("chunk_gap", 1.0)])
@pytest.mark.parametrize("value", [np.nan, np.inf, -0.1, 1e9, "much", None])
def test_a_signal_that_is_none_is_refused(name: str, most: float, value: object) -> None:
    packed = pack_action_chunk(ActionChunk(np.zeros((1, 2)), 1, 2))
    assert getattr(unpack_action_chunk(carried(packed | {name: most})), name) == most
    for wrong in (value, most + 0.01):
        with pytest.raises(TransportError, match=name):
            unpack_action_chunk(carried(packed | {name: wrong}))
    options: dict[str, Any] = {name: most}
    tick = Tick(StepResult(OBSERVATION, np.ones(2), False, False, False), "run", "", 1, 2, 0, **options)
    packed = pack_tick(tick, {}, 3)
    assert getattr(unpack_tick(carried(packed)), name) == most
    with pytest.raises(TransportError, match=name):
        unpack_tick(carried(packed | {name: value}))
    assert name not in pack_tick(replace(tick, **{name: None}), {}, 3), "an older peer reads the rest"


def test_an_embodiment_survives() -> None:
    assert unpack_embodiment(carried(pack_embodiment(EMBODIMENT))) == EMBODIMENT


def test_an_unknown_kind_of_action_is_refused_with_the_nearest() -> None:
    body = EMBODIMENT.to_dict()
    body["action"]["kind"] = "eef_dleta"
    with pytest.raises(TransportError, match="unknown kind of action 'eef_dleta'; did you mean 'eef_delta'"):
        unpack_embodiment(carried(body))


@pytest.mark.parametrize("rate_hz", [0.0, -10.0, 1e-300, 1e9, float("nan"), float("inf")])
def test_a_rate_that_no_arm_has_is_refused(rate_hz: float) -> None:
    with pytest.raises(TransportError, match=f"'rate_hz' must be a number from {MIN_RATE_HZ:g} to {MAX_RATE_HZ:g}"):
        unpack_embodiment(carried(EMBODIMENT.to_dict() | {"rate_hz": rate_hz}))


OBSERVATION = Observation({"front": np.zeros((2, 2, 3), np.uint8)}, np.zeros(2), "go", stamp_ns=1, step=0)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("images", {"front": np.zeros((2, 2), np.uint8)}, r"'front' must be uint8 of 3 dimensions, got uint8 of shape"),
        ("images", {"front": np.zeros((2, 2, 3))}, "got float64"),
        ("images", {"front": "pixels"}, "must be array, got str"),
        ("images", [], "must be dict, got list"),
        ("state", np.zeros((2, 2)), "'state' must be float64 of 1 dimensions"),
        ("instruction", 5, "'instruction' must be str, got int"),
        ("stamp_ns", 1.5, "'stamp_ns' must be int, got float"),
        ("step", True, "'step' must be int, got bool"),
        ("stamp_ns", 2**63, "'stamp_ns' does not fit into 64 bits"),
    ],
)
def test_a_wrong_field_is_named(key: str, value: Any, reason: str) -> None:
    with pytest.raises(TransportError, match=reason):
        unpack_observation(carried({**pack_observation(OBSERVATION), key: value}))


def test_a_missing_field_is_named_beside_those_that_are_there() -> None:
    with pytest.raises(TransportError, match="test: 'images' is missing; there are state"):
        unpack_observation(carried({"state": np.zeros(2)}))


def test_an_error_that_quotes_a_peer_at_length_still_fits_into_an_answer() -> None:
    names = {f"{index:04d}{'é' * 12}": None for index in range(1500)}
    with pytest.raises(TransportError, match="'images' is missing") as caught:
        unpack_observation(carried(names))
    assert len(str(caught.value)) < 2000
    encode(Message("error", 1, pack_error(TransportError("é" * 10**6))))


def test_every_error_of_the_tree_can_travel() -> None:
    tree = {name for name, thing in vars(errors).items() if isinstance(thing, type) and issubclass(thing, VlaError)}
    assert set(ERRORS) == tree - {"VlaError"}


@pytest.mark.parametrize("kind", ERRORS.values())
def test_an_error_arrives_as_what_it_was(kind: type[VlaError]) -> None:
    arrived = unpack_error(carried(dict(pack_error(kind("camera 'fronnt' is unknown")))))
    assert type(arrived) is kind
    assert str(arrived) == "camera 'fronnt' is unknown"


def test_a_subclass_travels_as_the_nearest_known_error() -> None:
    class SimulatorError(WorldError):
        pass

    assert type(unpack_error(carried(dict(pack_error(SimulatorError("unstable")))))) is WorldError


@pytest.mark.parametrize("name", ["SystemExit", "KeyboardInterrupt", "__import__"])
def test_a_peer_cannot_choose_what_is_raised(name: str) -> None:
    arrived = unpack_error(carried({"error": name, "message": "now"}))
    assert type(arrived) is TransportError
    assert str(arrived) == f"the peer reported {name}: now"


junk = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.text(max_size=3) | vectors,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
)


@pytest.mark.parametrize(
    "unpack", [unpack_observation, unpack_step_result, unpack_action_chunk, unpack_embodiment, unpack_error]
)
@given(data=st.data())
def test_whatever_a_peer_sends_only_transport_error_comes_of_it(
    unpack: Callable[[MessageReader], object], data: st.DataObject
) -> None:
    body: dict[str, Any] = {
        **pack_step_result(StepResult(OBSERVATION, np.zeros(2), False, False, False)),
        **pack_observation(OBSERVATION),
        **pack_action_chunk(ActionChunk(np.zeros((1, 2)), 1, 0)),
        **pack_embodiment(EMBODIMENT),
        **pack_error(RecipeError("x")),
    }
    body[data.draw(st.sampled_from(sorted(body)))] = data.draw(junk)
    try:
        unpack(carried(body))
    except TransportError as error:
        assert str(error)


@pytest.mark.parametrize(
    "stages_ms",
    [
        {"reason": float("nan")},
        {"reason": float("inf")},
        {"reason": -1.0},
        {"reason": 1e300},
        {f"stage {k}": 1.0 for k in range(33)},
        {"x" * 41: 1.0},
    ],
)
def test_times_that_could_not_be_summed_or_shown_are_refused(stages_ms: dict[str, float]) -> None:
    packed = pack_action_chunk(ActionChunk(np.zeros((1, 2)), 1, 0, stages_ms))
    with pytest.raises(TransportError, match="stages_ms"):
        unpack_action_chunk(MessageReader(packed, "chunk"))


@pytest.mark.parametrize("rows", [0, -1, 3])
def test_an_execution_horizon_beyond_the_chunk_is_refused(rows: int) -> None:
    packed = pack_action_chunk(ActionChunk(np.zeros((2, 2)), 1, 0, rows=rows))
    with pytest.raises(TransportError, match=f"rows {rows} is outside 1 to 2"):
        unpack_action_chunk(MessageReader(packed, "chunk"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_clamp_of_no_number_is_refused(value: float) -> None:
    seen = Observation({}, np.zeros(1), "go", stamp_ns=1, step=0)
    clamps = (Clamp("dx", "range", value, 0.1),)
    packed = pack_step_result(StepResult(seen, np.zeros(2), False, False, False, clamps))
    with pytest.raises(TransportError, match="'wanted' must be a number"):
        unpack_step_result(MessageReader(packed, "result"))
