"""Gets a policy's first answers before the arm moves, since they may compile a model or wake a server.

look --> ask --> discard            until an answer comes within the time that the bridge allows
reset    the episode begins, and its watchdog runs
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vla_robot.core.clock import NS_PER_S, Clock, MonotonicClock
from vla_robot.core.errors import ContractError, PolicyError
from vla_robot.core.messages import ActionChunk, Observation
from vla_robot.core.ports import Policy
from vla_robot.core.robot import TimeLimits
from vla_robot.loop.control_loop import always_false, ask

TRIES = 3
"""Answers after the first that may be too slow, since the computer may be busy with something else."""

PATIENCE_S = 300.0
"""Time limit of the first answer if the policy itself fails earlier: a server goes on compiling meanwhile [s]."""

AT_ONCE_S = 1.0
"""An error within this time was not a timeout, so the policy is not asked again [s]."""


@dataclass(frozen=True)
class Warm:
    """Speed of a policy.

    Attributes:
        first_s: time of its first answer [s].
        quick_s: time of its fastest answer [s].
        rows: number of actions in an answer.
    """

    first_s: float
    quick_s: float
    rows: int


def warm_up(
    policy: Policy,
    look: Callable[[], Observation],
    seed: int,
    limits: TimeLimits,
    rate_hz: float,
    *,
    clock: Clock | None = None,
    should_stop: Callable[[], bool] = always_false,
) -> Warm:
    """Ask a policy with the present observation until it is fast enough; the answers are discarded.

    Args:
        policy: is reset before each question; the episode resets it again.
        look: returns the present observation; the arm does not move.
        seed: seed of the first episode.
        limits: time limits of the bridge that will get the answers.
        rate_hz: control rate.
        clock: times the answers.
        should_stop: called between the answers; True ends the warm-up.

    Raises:
        PolicyError: the policy has no valid action.
        ContractError: the policy is too slow for the bridge; the message has both times.
    """
    clock = clock or MonotonicClock()
    first_s, chunk = _patiently(policy, look, seed, clock, should_stop)
    quick_s = first_s
    for _ in range(TRIES):
        if should_stop() or not too_slow(quick_s, len(chunk.actions), limits, rate_hz):
            break
        again_s, chunk = _timed(policy, look, seed, clock)
        quick_s = min(quick_s, again_s)
    problem = too_slow(quick_s, len(chunk.actions), limits, rate_hz) or too_seldom(quick_s, chunk, limits, rate_hz)
    if problem and not should_stop():
        raise ContractError(f"{problem} Nothing was moved.")
    return Warm(first_s, quick_s, len(chunk.actions))


def too_slow(answer_s: float, rows: int, limits: TimeLimits, rate_hz: float) -> str:
    """Return why answers that take this long would never move the arm; empty if they would.

    Args:
        answer_s: time of an answer [s].
        rows: number of actions in an answer.
        limits: time limits of the bridge.
        rate_hz: control rate.
    """
    answers = f"the policy takes {answer_s:.2f} s for an answer"
    if answer_s >= limits.stop_s:
        return (
            f"{answers}, and the bridge stops the arm when no action came for {limits.stop_s:g} s. Use a quicker "
            f"policy, or start the bridge with --stop-after-s {2 * answer_s:.1f} and --max-age-s {2 * answer_s:.1f}."
        )
    if rows == 1 and answer_s > limits.max_age_s:
        return (
            f"{answers}, and the bridge refuses an action whose frames are older than {limits.max_age_s:g} s. Use a "
            f"quicker policy, or start the bridge with --max-age-s {2 * answer_s:.1f}."
        )
    if rows > 1 and answer_s * rate_hz >= rows:
        return (
            f"{answers}, and its {rows} actions are for {rows / rate_hz:.2f} s at {rate_hz:g} Hz: all would be past "
            "when they come. Use a quicker policy, or one whose chunks are longer."
        )
    return ""


def too_seldom(answer_s: float, chunk: ActionChunk, limits: TimeLimits, rate_hz: float) -> str:
    """Return why the bridge would hold the arm between two answers of this execution horizon; empty if it would not.

    Args:
        answer_s: time of an answer [s].
        chunk: an answer.
        limits: time limits of the bridge.
        rate_hz: control rate.
    """
    if chunk.rows is None:
        return ""
    between_s = max(chunk.rows / rate_hz, answer_s)
    if between_s >= limits.hold_after_s:
        return (
            f"with {chunk.rows} rows of a chunk at {rate_hz:g} Hz, an answer comes every {between_s:.2f} s, and the "
            f"bridge holds the arm when no action came for {limits.hold_after_s:g} s. Use fewer `rows`, or start the "
            f"bridge with --hold-after-s {2 * between_s:.1f}."
        )
    return ""


def _patiently(
    policy: Policy, look: Callable[[], Observation], seed: int, clock: Clock, should_stop: Callable[[], bool]
) -> tuple[float, ActionChunk]:
    """Time the first answer; a policy that fails while its server compiles is asked again."""
    begun_ns = clock.now_ns()
    while True:
        asked_ns = clock.now_ns()
        try:
            _, chunk = _timed(policy, look, seed, clock)
            return (clock.now_ns() - begun_ns) / NS_PER_S, chunk
        except PolicyError:
            now_ns = clock.now_ns()
            at_once = now_ns - asked_ns < AT_ONCE_S * NS_PER_S
            if at_once or should_stop() or now_ns - begun_ns >= PATIENCE_S * NS_PER_S:
                raise


def _timed(policy: Policy, look: Callable[[], Observation], seed: int, clock: Clock) -> tuple[float, ActionChunk]:
    """Return the time of one answer [s], and the answer."""
    policy.reset(seed)
    observation = look()
    asked_ns = clock.now_ns()
    chunk = ask(policy, observation)
    return (clock.now_ns() - asked_ns) / NS_PER_S, chunk
