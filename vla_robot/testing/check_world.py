"""The contract of a World, and its check."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from vla_robot.core.errors import ContractError, VlaError
from vla_robot.core.messages import Observation, StepResult
from vla_robot.core.ports import StepsWithoutFrames, VisibleWorld, World
from vla_robot.testing.contract import (
    FITS,
    INSTRUCTS,
    TIMES,
    TRAVELS,
    Contract,
    Sentence,
    closed_in_the_end,
    content,
    require_embodiment,
    rest_action,
    small_action,
)

CONTRACT = Contract(
    "World",
    {
        "is_world": Sentence(
            "It has embodiment, instruction, reset, step and close.",
            "Write all that vla_robot.core.ports.World names; no base class is needed.",
        ),
        "travels": TRAVELS,
        "instructs": INSTRUCTS,
        "fits": FITS,
        "in_range": Sentence(
            "Each number of the state lies between its dimension's low and high.",
            "Widen the limits in `embodiment.state`, or correct the number's unit.",
        ),
        "repeats_instruction": Sentence(
            "Each observation carries the world's instruction.",
            "Build observations with `self.instruction`, and change both together at reset.",
        ),
        "counts": Sentence(
            "reset gives step 0, and each step adds one.", "Set `Observation.step` from a counter that reset clears."
        ),
        "stamps": Sentence(
            "The newest frame's stamp grows from one observation to the next, where cameras have no rates of their "
            "own. A command is stamped between the two, or 0.",
            "Stamp observations at the capture and commands when they are handed over, by one monotonic clock.",
        ),
        "executes": Sentence(
            "executed is the action that the arm was given; each number that differs from the one asked for has a "
            "Clamp.",
            "Return what was really sent, and name each limit with `clamps_of`.",
        ),
        "copies": Sentence(
            "The caller may reuse its action array after step.", "Keep and return `action.copy()`, not the array."
        ),
        "keeps": Sentence(
            "An observation does not change after it was given.",
            "Give each observation arrays of its own: copy what a renderer or simulator writes again.",
        ),
        "ends": Sentence(
            "success, terminated and truncated are bools.", "Convert numpy's and the simulator's results with bool()."
        ),
        "refuses": Sentence(
            "An action of a wrong shape, or with a number that is not finite, raises ContractError, and nothing moves.",
            "Check the action before anything is sent, e.g. with vla_robot.safety.limits.require_action.",
        ),
        "refuses_seed": Sentence(
            "A negative seed raises ContractError.", "Begin reset with vla_robot.core.seeds.require_seed(seed)."
        ),
        "repeats": Sentence(
            "The same seed gives the same initial state, and then the same actions the same observations, whatever ran "
            "before.",
            "Draw all that is random at reset from a generator made of the seed, and set back all that an episode "
            "changed.",
        ),
        "looks": Sentence(
            "look gives the present state and step under a newer stamp, and changes nothing.",
            "Render without stepping the simulation, and leave the step counter alone.",
        ),
        "leaves_out": Sentence(
            "step_without_frames moves as step does: the next step with frames gives the same observation.",
            "Let both execute the action by the same code, and leave out the rendering alone.",
        ),
        "times": TIMES,
        "closes": Sentence(
            "close may be called twice; after it, reset and step raise a VlaError.",
            "Let close return when it has released all before, and check a flag in reset and step.",
        ),
    },
)
"""Sentences that `check_world` checks."""


def check_world(make_world: Callable[[], World], *, seed: int = 1, steps: int = 3, simulated: bool = True) -> None:
    """Check that a world keeps its contract: see CONTRACT, and `vla_robot.core.ports.World`.

    It runs some short episodes with small motions, and closes the world at the end.

    Args:
        make_world: builds the world.
        seed: seed of the first episode.
        steps: steps of each episode; fewer than the world's horizon.
        simulated: whether time stops between steps and episodes repeat; False skips checks that no real robot passes.

    Raises:
        BrokenContractError: a sentence does not hold; the message quotes it and says what to do.
    """
    made = make_world()
    CONTRACT.require(isinstance(made, World), "is_world", f"{type(made).__name__} lacks some of it")
    with closed_in_the_end(made) as world:
        require_embodiment(CONTRACT, world.embodiment, world.instruction)
        seen = _check_episode(world, seed, steps)
        _check_arrays(world, seed)
        if simulated:
            _check_repeats(world, seed, seen)
        if simulated and isinstance(world, VisibleWorld):
            _check_looks(world, seed, seen)
        if simulated and isinstance(world, StepsWithoutFrames):
            _check_without_frames(world, seed, seen)
        _check_refusals(world, seed, seen if simulated else [])
        world.close()
        for call, what in ((lambda: world.reset(seed), "reset"), (lambda: world.step(np.zeros(1)), "step")):
            CONTRACT.require_refusal(call, VlaError, "closes", f"{what} after close")


def _check_episode(world: World, seed: int, steps: int) -> list[Observation]:
    """Run an episode of small motions; return its observations."""
    observation = world.reset(seed)
    _check_observation(world, observation, step=0)
    seen = [observation]
    for step in range(1, steps + 1):
        action = small_action(world.embodiment, observation.state)
        result = world.step(action.copy())
        _check_observation(world, result.observation, step)
        _check_result(world, observation, result)
        CONTRACT.require_stages(world, "times")
        CONTRACT.require_executed(world.embodiment, action, result, "executes")
        observation = result.observation
        seen.append(observation)
    return seen


def _check_observation(world: World, observation: Observation, step: int) -> None:
    CONTRACT.require_fit(world.embodiment, observation, "fits")
    for dim, value in zip(world.embodiment.state, observation.state, strict=True):
        inside = dim.low <= value <= dim.high
        CONTRACT.require(inside, "in_range", f"{dim.name} is {value:g}, announced is {dim.low:g} to {dim.high:g}")
    same = observation.instruction == world.instruction
    CONTRACT.require(same, "repeats_instruction", f"'{observation.instruction}', not '{world.instruction}'")
    CONTRACT.require(observation.step == step, "counts", f"step {observation.step} in the place of {step}")


def _check_result(world: World, before: Observation, result: StepResult) -> None:
    before_ns, after_ns = _newest_ns(before), _newest_ns(result.observation)
    is_old = bool(before.stamps_ns) and before_ns == after_ns
    between = result.command_ns == 0 or is_old or before_ns < result.command_ns < after_ns
    seen = f"{before_ns}, command {result.command_ns}, then {after_ns}"
    CONTRACT.require(between and (before_ns < after_ns or is_old), "stamps", seen)
    for name in ("success", "terminated", "truncated"):
        value = getattr(result, name)
        CONTRACT.require(type(value) is bool, "ends", f"{name} is {value!r} ({type(value).__name__})")


def _newest_ns(observation: Observation) -> int:
    """Return the capture time of the newest frame [ns]."""
    return max(observation.stamps_ns.values(), default=observation.stamp_ns)


def _check_arrays(world: World, seed: int) -> None:
    first = world.reset(seed)
    kept = content(first)
    action = small_action(world.embodiment, first.state)
    result = world.step(action)
    executed = None if result.executed is None else result.executed.copy()
    action[:] = 0.5
    intact = executed is None or (result.executed is not None and np.array_equal(executed, result.executed))
    CONTRACT.require(intact, "copies", "executed changed with the caller's array")
    world.step(rest_action(world.embodiment, result.observation.state))
    CONTRACT.require(content(first) == kept, "keeps", "what reset gave changed in the next steps")


def _check_refusals(world: World, seed: int, undisturbed: list[Observation]) -> None:
    """Check that bad actions are refused, and that the episode then continues as the undisturbed one, if given."""
    first = world.reset(seed)
    rest = rest_action(world.embodiment, first.state)
    bad = {
        "a number too few": rest[:-1],
        "a dimension too many": rest[None],
        "NaN": rest * np.nan,
        "inf": rest + np.inf,
    }
    for what, action in bad.items():
        CONTRACT.require_refusal(lambda a=action: world.step(a), ContractError, "refuses", f"an action with {what}")
    for expected in undisturbed[1:2]:
        after = world.step(small_action(world.embodiment, first.state)).observation
        CONTRACT.require(content(after) == content(expected), "refuses", "the arm moved, or a step was counted")
    CONTRACT.require_refusal(lambda: world.reset(-1), ContractError, "refuses_seed", "reset(-1)")


def _check_repeats(world: World, seed: int, seen: list[Observation]) -> None:
    for other in (seed + 1, seed + 2):
        _check_episode(world, other, 1)
    again = _check_episode(world, seed, len(seen) - 1)
    for first, second in zip(seen, again, strict=True):
        same = content(first) == content(second)
        CONTRACT.require(same, "repeats", f"another observation at step {first.step} of seed {seed}")


def _check_looks(world: VisibleWorld, seed: int, seen: list[Observation]) -> None:
    observation = world.reset(seed)
    for expected in seen[1:]:
        look = world.look()
        same = content(look) == content(observation) if not observation.stamps_ns else True
        same &= np.array_equal(look.state, observation.state) and look.step == observation.step
        CONTRACT.require(same, "looks", f"another observation than the newest, or step {look.step}")
        CONTRACT.require(_newest_ns(look) > _newest_ns(observation), "looks", "a stamp that is not newer")
        observation = world.step(small_action(world.embodiment, observation.state)).observation
        CONTRACT.require(content(observation) == content(expected), "looks", "an episode that the looks changed")


def _check_without_frames(world: StepsWithoutFrames, seed: int, seen: list[Observation]) -> None:
    observation, last = world.reset(seed), seen[-1].step
    for expected in seen[1:]:
        step = world.step if expected.step == last else world.step_without_frames
        observation = step(small_action(world.embodiment, observation.state)).observation
        same = np.array_equal(observation.state, expected.state) and observation.step == expected.step
        CONTRACT.require(same, "leaves_out", f"another state at step {expected.step}, or step {observation.step}")
    same = content(observation) == content(seen[-1])
    CONTRACT.require(same, "leaves_out", f"another observation at step {last}, after steps without frames")
