"""A person drives in a policy's place, mid-episode, and gives it back. A wrapper of a policy is a policy.

    policy drives  --takeover, or hands that move-->  person drives  --giveback-->  policy drives, asked afresh

What the policy had planned or was still thinking of at the takeover is never executed. A person who drives and lets go
of the controls leaves the arm at rest, not the policy driving: control goes back by the button alone. A world stands
still meanwhile; a robot is told to stay, since silence is a lost controller to its bridge. E-stop ends the episode, and
so do the buttons success and stop, whoever drives: a real robot has no other success test.

The policy thinks in a thread of its own, so that hands are heard while it does. Where its answers take a small share of
a control period it is also asked while the person drives, and its action is kept beside theirs.

Source: Ross et al. 2011 (DAgger); Kelly et al. 2019 (HG-DAgger), in which the person decides when to take over.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from vla_robot.core.clock import NS_PER_S, Clock, MonotonicClock
from vla_robot.core.embodiment import Embodiment
from vla_robot.core.errors import NoActionYetError, PolicyError
from vla_robot.core.messages import ActionChunk, Observation, Vector
from vla_robot.core.ports import Policy, SharesControl, Teleoperator
from vla_robot.core.teleop import Button, Driver, TeleopCommand
from vla_robot.loop.control_loop import EndedByPersonError
from vla_robot.loop.events import EpisodeEnded, EpisodeStarted, Event, StepDone, StepsLost
from vla_robot.loop.results import Outcome

POLL_S = 0.02
"""How often hands are looked at while the policy thinks."""

CHEAP_SHARE = 0.25
"""Of a control period: a policy that answered faster than this is also asked while the person drives."""

DEFLECTION = 0.02
"""Of the fastest that is allowed: hands that move less are at rest."""

GRIPPER = "gripper"

ENDS: dict[Button, Outcome] = {"success": "success", "stop": "failure"}
"""What the buttons that end an episode make of it."""


class Takeover:
    """The Policy port over a policy and a person's hands; also a subscriber of the loop, which lets the person see."""

    def __init__(
        self,
        policy: Policy,
        teleop: Teleoperator,
        embodiment: Embodiment,
        *,
        row_by_row: bool,
        clock: Clock | None = None,
        look: Callable[[], Observation | None] = lambda: None,
        on_estop: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Args:
            policy: drives until a person takes over.
            teleop: the person; stays the caller's to close.
            embodiment: of the arm.
            row_by_row: give out a policy's chunk one action at a time, for a loop that asks again only when a chunk is
                used up: so hands are heard at every step. A robot with a clock of its own gets whole chunks.
            clock: measures how long the policy thinks.
            look: the newest observation of an arm that moves on while the policy thinks; the person sees it meanwhile.
            on_estop: called when the person pressed it, before the episode ends.
        """
        self._policy = policy
        self._hands = _Hands(teleop, embodiment)
        self._row_by_row = row_by_row
        self._clock = clock or MonotonicClock()
        self._cheap_ns = CHEAP_SHARE * NS_PER_S / embodiment.rate_hz
        self._look = look
        self._on_estop = on_estop
        self._worker = ThreadPoolExecutor(1, "policy")
        self._pending: Future[ActionChunk] | None = None
        self._chunk: ActionChunk | None = None
        self._thought_ns: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._worker.shutdown()

    @property
    def driver(self) -> Driver:
        return self._hands.driver

    def reset(self, seed: int) -> None:
        """The policy drives first, also where a person drove last."""
        self._pending = self._chunk = None
        self._worker.submit(self._policy.reset, seed).result()
        self._hands.reset()

    def act(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        """One chunk of the driver.

        Raises:
            NoActionYetError: the person drives and is not at the controls, or took over while the policy thought.
            EndedByPersonError: the person pressed success or stop.
            PolicyError: the policy has no action, or the person pressed e-stop.
        """
        (observation,) = observations
        self._listen()
        if self.driver == "person":
            return [self._by_hand(observation)]
        return [self._by_policy(observation)]

    def __call__(self, event: Event) -> None:
        """Let the person see what the loop saw."""
        match event:
            case EpisodeStarted():
                self._hands.begin_showing(event.observation)
            case StepDone():
                self._hands.show(event)
            case StepsLost() | EpisodeEnded():
                pass

    def _listen(self) -> None:
        before = self.driver
        buttons = self._hands.listen()
        if "estop" in buttons:
            self._on_estop()
            raise PolicyError("the person at the controls pressed e-stop.")
        for button, outcome in ENDS.items():
            if button in buttons:
                raise EndedByPersonError(outcome)
        if self.driver != before:
            self._chunk = None

    def _by_hand(self, observation: Observation) -> ActionChunk:
        action = self._hands.action()
        if action is None:
            return self._at_rest(observation)
        beside = self._beside(observation)
        return ActionChunk(
            action[None], observation.stamp_ns, observation.step, intervention=True, policy_actions=beside
        )

    def _at_rest(self, observation: Observation) -> ActionChunk:
        """What keeps a robot where it is. Raises NoActionYetError where nothing is needed for that, or nothing can."""
        stay = None if self._row_by_row else self._hands.stay()
        if stay is None:
            raise NoActionYetError("a person has taken over, and no person is at the controls.")
        return ActionChunk(stay[None], observation.stamp_ns, observation.step, intervention=True, rests=True)

    def _beside(self, observation: Observation) -> Vector | None:
        """(1, D) what the policy would do here; None where asking it would keep the person waiting."""
        if self._thought_ns is None or self._thought_ns > self._cheap_ns or not self._is_free():
            return None
        with contextlib.suppress(PolicyError):
            return self._worker.submit(self._think, observation).result().actions[:1]
        return None

    def _by_policy(self, observation: Observation) -> ActionChunk:
        if not self._row_by_row:
            return self._asked(observation)
        if self._chunk is None or not 0 <= observation.step - self._chunk.step < len(self._chunk.actions):
            self._chunk = self._asked(observation)
            stages_ms = self._chunk.stages_ms
        else:
            stages_ms = {}
        row = observation.step - self._chunk.step
        return replace(
            self._chunk, actions=self._chunk.actions[row : row + 1], step=observation.step, stages_ms=stages_ms
        )

    def _asked(self, observation: Observation) -> ActionChunk:
        """The policy's answer, while hands are heard.

        Raises:
            NoActionYetError: the person took over meanwhile, or the policy is still busy with what it saw before they
                did.
        """
        if not self._is_free():
            raise NoActionYetError("the policy is still busy with what it saw before a person took over.")
        self._pending = self._worker.submit(self._think, observation)
        while not wait([self._pending], POLL_S).done:
            self._hands.glance(self._look())
            self._listen()
            if self.driver == "person":
                raise NoActionYetError("a person took over while the policy thought.")
        answer, self._pending = self._pending, None
        return answer.result()

    def _is_free(self) -> bool:
        """Whether no inference runs; an answer that is not waited for any more is dropped."""
        if self._pending is not None and self._pending.done():
            self._pending = None
        return self._pending is None

    def _think(self, observation: Observation) -> ActionChunk:
        started_ns = self._clock.now_ns()
        chunks = self._policy.act([observation])
        self._thought_ns = self._clock.now_ns() - started_ns
        if len(chunks) != 1 or not len(chunks[0].actions):
            raise PolicyError(f"the policy gave {len(chunks)} chunks for one observation.")
        return chunks[0]


@dataclass
class _Shown:
    """What is told beside the pictures."""

    episode: int = 0
    steps: int = 0
    corrected: int = 0


class _Hands:
    """A person's hands, and whether they drive."""

    def __init__(self, teleop: Teleoperator, embodiment: Embodiment) -> None:
        space = embodiment.action
        self._teleop = teleop
        self._has_gripper = space.names[-1] == GRIPPER
        self._is_relative = space.kind == "eef_delta"
        self._last: Vector | None = None
        reach = np.maximum(np.abs(space.low), np.abs(space.high))
        # Only hands that say how far to move can be at rest; a leader arm always points somewhere.
        self._moves = np.array([self._is_relative and name != GRIPPER for name in space.names])
        self._least = DEFLECTION * reach
        self._said = TeleopCommand(None)
        self._grip: tuple[float, float] | None = None
        self._executed: Vector | None = None
        self._rested = False
        self._counts = _Shown()
        self._seen = 0
        self.driver: Driver = "policy"

    def reset(self) -> None:
        """An episode begins: what was pressed before it counts for nothing."""
        self._teleop.command()
        self.driver, self._executed, self._grip, self._rested = "policy", None, None, False
        self._last = None

    def listen(self) -> frozenset[Button]:
        """Take in what is said now; the buttons that were pressed."""
        self._said = said = self._teleop.command()
        if "estop" in said.buttons:
            return said.buttons
        moving = self._are_moving(said.action)
        if self.driver == "person" and "giveback" in said.buttons:
            self.driver, self._rested = "policy", False
            self._tell()
        elif self.driver == "policy" and ("takeover" in said.buttons or (moving and self._rested)):
            self.driver, self._last = "person", self._executed
            self._keep_grip(said.action)
            self._tell()
        self._rested = self._rested or not moving
        return said.buttons

    def action(self) -> Vector | None:
        """(D,) what the hands say; None when no person is at the controls.

        The grip stays as the arm's was at the takeover until the person changes it: a takeover must not drop what the
        policy held.
        """
        if self._said.action is None:
            return None
        self._last = self._gripping(self._said.action)
        return self._last

    def stay(self) -> Vector | None:
        """(D,) what leaves an arm that is moved by deltas where it is, with its grip; None for any other."""
        if not self._is_relative or self._last is None:
            return None
        return np.where(self._moves, 0.0, self._last)

    def _gripping(self, action: Vector) -> Vector:
        if not self._has_gripper:
            return action
        if self._grip is None and self._executed is not None:
            self._keep_grip(action)
        if self._grip is not None and action[-1] == self._grip[0]:
            return np.append(action[:-1], self._grip[1])
        self._grip = (np.nan, np.nan)  # they have changed it: from here on theirs counts
        return action

    def begin_showing(self, observation: Observation) -> None:
        self._counts = _Shown(self._counts.episode + 1)
        self._tell()
        self._seen = observation.step
        self._teleop.show(observation, self._counters())

    def glance(self, observation: Observation | None) -> None:
        """Show something newer than the last step, if it is."""
        if observation is not None and observation.step > self._seen:
            self._seen = observation.step
            self._teleop.show(observation, self._counters())

    def show(self, step: StepDone) -> None:
        self._executed = self._executed if step.result.executed is None else step.result.executed
        self._counts.steps += 1
        self._counts.corrected += step.intervention and not step.held
        self._tell()
        self._seen = step.result.observation.step
        self._teleop.show(step.result.observation, self._counters())

    def _keep_grip(self, action: Vector | None) -> None:
        self._grip = None
        if self._has_gripper and action is not None and self._executed is not None:
            self._grip = float(action[-1]), float(self._executed[-1])

    def _are_moving(self, action: Vector | None) -> bool:
        return action is not None and bool((np.abs(action) > self._least)[self._moves].any())

    def _tell(self) -> None:
        if isinstance(self._teleop, SharesControl):
            self._teleop.tell_driver(self.driver, self._executed)

    def _counters(self) -> dict[str, str]:
        return {
            "drives": "you" if self.driver == "person" else "the policy",
            "episode": str(self._counts.episode),
            "steps": str(self._counts.steps),
            "corrected": str(self._counts.corrected),
        }
