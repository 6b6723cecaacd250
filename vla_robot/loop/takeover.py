"""Lets a person take control from a policy during an episode, and give it back. The wrapper is a Policy.

    policy controls  --takeover, or a moved device-->  person controls  --giveback-->  policy controls, asked afresh

The policy's planned actions, and the answer it was computing at the takeover, are never executed. If the person
releases the device, the arm rests and the policy stays without control: only the button gives it back. A world waits
meanwhile; a robot gets an action that holds its pose, since its bridge takes silence for a lost controller. E-stop, and
the buttons success and stop, end the episode under either's control: a real robot has no other success test.
The policy runs in a thread of its own, so that the device is read while it computes. If its answers take a small share
of a control period, it is also asked while the person is in control, and its action is stored beside theirs.
With a signal's threshold, an unsure policy hands over by itself (`loop/failure_detector.py`): the arm waits for the
person, and the policy's steps count anew after control was given back.
Source: Ross et al. 2011 (DAgger); Kelly et al. 2019 (HG-DAgger), in which the person decides when to take over.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace

import numpy as np

from vla_robot.core.clock import NS_PER_S, Clock, MonotonicClock
from vla_robot.core.embodiment import Embodiment
from vla_robot.core.errors import NoActionYetError, PolicyError
from vla_robot.core.host.closeable import Closeable
from vla_robot.core.messages import ActionChunk, Observation, Vector
from vla_robot.core.ports import Policy, SharesControl, Teleoperator
from vla_robot.core.ports.wrapped_policy import history_steps
from vla_robot.core.teleop import Button, Driver, TeleopCommand
from vla_robot.loop.chunk_gap import ChunkGapMeter
from vla_robot.loop.control_loop import EndedByPersonError
from vla_robot.loop.events import EpisodeEnded, EpisodeStarted, Event, StepDone, StepsLost
from vla_robot.loop.failure_detector import FailureDetector, Threshold
from vla_robot.loop.results import Outcome

POLL_S = 0.02
"""Period at which the device is read while the policy computes [s]."""

CHEAP_SHARE = 0.25
"""Share of a control period; a policy that answered faster is also asked while the person is in control."""

DEFLECTION = 0.02
"""Share of the largest allowed action; a device whose action is smaller is at rest."""

GRIPPER = "gripper"

ENDS: dict[Button, Outcome] = {"success": "success", "stop": "failure"}
"""Buttons that end an episode -> its outcome."""


class Takeover(Closeable):
    """Policy that combines a policy and a teleoperator; as a subscriber of the loop it shows the person the frames."""

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
        unsure_above: Threshold | None = None,
    ) -> None:
        """
        Args:
            policy: in control until a person takes over.
            teleop: the person's teleoperator; the caller closes it.
            embodiment: the arm's embodiment.
            row_by_row: give out a policy's chunk one action at a time, for a loop that asks again only when a chunk is
                used up, so that the device is read at every step. A robot with its own clock gets whole chunks.
            clock: measures how long the policy computes.
            look: returns the newest observation of an arm that moves while the policy computes, to show the person.
            on_estop: called when the person pressed e-stop, before the episode ends.
            unsure_above: score of recent steps above which the policy hands over to the person; None: it never does.
        """
        self._policy = policy
        self._hands = _Hands(teleop, embodiment)
        self._row_by_row = row_by_row
        self._clock = clock or MonotonicClock()
        self._cheap_ns = CHEAP_SHARE * NS_PER_S / embodiment.rate_hz
        self._look = look
        self._on_estop = on_estop
        self._gaps = ChunkGapMeter(policy, embodiment.action)
        self._unsure_above = unsure_above
        self._detector = FailureDetector(np.inf if unsure_above is None else unsure_above.score)
        self._worker = ThreadPoolExecutor(1, "policy")
        self._pending: Future[ActionChunk] | None = None
        self._chunk: ActionChunk | None = None
        self._thought_ns: int | None = None

    def close(self) -> None:
        self._worker.shutdown()

    @property
    def history_steps(self) -> int:
        return history_steps(self._policy)

    @property
    def measures_chunk_gap(self) -> bool:
        """True: the loop sees a chunk row by row, and not where the policy's plan was dropped."""
        return True

    @property
    def driver(self) -> Driver:
        return self._hands.driver

    def reset(self, seed: int) -> None:
        """Reset the policy and give it control."""
        self._pending = None
        self._drop_plan()
        self._worker.submit(self._policy.reset, seed).result()
        self._hands.reset()

    def act(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        """Return a chunk of the policy or of the person, whichever is in control.

        Raises:
            NoActionYetError: the person has control but gives no action, or took over while the policy computed.
            EndedByPersonError: the person pressed success or stop.
            PolicyError: the policy has no action, or the person pressed e-stop.
        """
        (observation,) = observations
        self._listen()
        if self.driver == "person":
            return [self._by_hand(observation)]
        return [self._by_policy(observation)]

    def __call__(self, event: Event) -> None:
        """Show the person the observation of an event."""
        match event:
            case EpisodeStarted():
                self._hands.begin_showing(event.observation)
            case StepDone():
                self._hands.note(event)
                self._watch(event)
                self._hands.show(event.result.observation)
            case StepsLost() | EpisodeEnded():
                pass

    def _watch(self, event: StepDone) -> None:
        """Give control to the person if the policy has become unsure."""
        if self._unsure_above is None or self.driver != "policy":
            return
        if self._detector.add(self._unsure_above.signal.of_step(event)):
            self._hands.take(asked=True)
            self._drop_plan()

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
            self._drop_plan()

    def _drop_plan(self) -> None:
        """Forget what the policy planned, and how unsure it was, since another one drives from here on."""
        self._chunk = None
        self._gaps.forget()
        self._detector.reset()

    def _by_hand(self, observation: Observation) -> ActionChunk:
        action = self._hands.action()
        if action is None:
            return self._at_rest(observation)
        beside = self._beside(observation)
        return ActionChunk(
            action[None], observation.stamp_ns, observation.step, intervention=True, policy_actions=beside
        )

    def _at_rest(self, observation: Observation) -> ActionChunk:
        """Return a chunk that holds a robot's pose. Raises NoActionYetError if none is needed, or none exists."""
        stay = None if self._row_by_row else self._hands.stay()
        if stay is None:
            raise NoActionYetError("a person has taken over, and gives no action.")
        return ActionChunk(stay[None], observation.stamp_ns, observation.step, intervention=True, rests=True)

    def _beside(self, observation: Observation) -> Vector | None:
        """Return the policy's (1, D) action here; None if asking it would delay the person."""
        if self._thought_ns is None or self._thought_ns > self._cheap_ns or not self._is_free():
            return None
        with contextlib.suppress(PolicyError):
            return self._worker.submit(self._think, observation).result().actions[:1]
        return None

    def _by_policy(self, observation: Observation) -> ActionChunk:
        if not self._row_by_row:
            return self._by_plan(observation)
        if self._chunk is None or not self._chunk.lasts(observation.step):
            self._chunk = self._asked(observation)
            stages_ms = self._chunk.stages_ms
        else:
            stages_ms = {}
        row = observation.step - self._chunk.step
        return replace(
            self._chunk,
            actions=self._chunk.actions[row : row + 1],
            step=observation.step,
            stages_ms=stages_ms,
            rows=None,
        )

    def _by_plan(self, observation: Observation) -> ActionChunk:
        """Return a whole chunk, for a robot that executes it meanwhile.

        It has no execution horizon, so that the loop asks at each tick and the device is read; this side keeps it.

        Raises:
            NoActionYetError: as `_asked`, and while an earlier chunk is within its horizon.
        """
        if self._chunk is not None and self._chunk.rows is not None and self._chunk.lasts(observation.step):
            raise NoActionYetError("the robot still executes the policy's last answer.")
        self._chunk = self._asked(observation)
        return replace(self._chunk, rows=None)

    def _asked(self, observation: Observation) -> ActionChunk:
        """Return the policy's answer; the device is read meanwhile.

        Raises:
            NoActionYetError: the person took over meanwhile, or the policy still computes an answer from before the
                takeover.
        """
        if not self._is_free():
            raise NoActionYetError("the policy is still computing an answer from before a person took over.")
        self._pending = self._worker.submit(self._think, observation)
        while not wait([self._pending], POLL_S).done:
            self._hands.glance(self._look())
            self._listen()
            if self.driver == "person":
                raise NoActionYetError("a person took over while the policy thought.")
        answer, self._pending = self._pending, None
        return self._gaps.measured(answer.result(), observation)

    def _is_free(self) -> bool:
        """Return whether no inference runs; an answer that is no longer needed is dropped."""
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
    """Counters that are shown beside the frames."""

    episode: int = 0
    steps: int = 0
    corrected: int = 0


class _Hands:
    """A person's teleoperator, and whether it is in control."""

    def __init__(self, teleop: Teleoperator, embodiment: Embodiment) -> None:
        space = embodiment.action
        self._teleop = teleop
        self._has_gripper = space.names[-1] == GRIPPER
        self._is_relative = space.kind == "eef_delta"
        self._last: Vector | None = None
        reach = np.maximum(np.abs(space.low), np.abs(space.high))
        # Only a device of relative actions can be at rest; a leader arm always commands a pose.
        self._moves = np.array([self._is_relative and name != GRIPPER for name in space.names])
        self._least = DEFLECTION * reach
        self._said = TeleopCommand(None)
        self._grip: tuple[float, float] | None = None
        self._executed: Vector | None = None
        self._rested = False
        self._counts = _Shown()
        self._seen = 0
        self._asked = False
        self.driver: Driver = "policy"

    def reset(self) -> None:
        """Begin an episode; buttons that were pressed before it are discarded."""
        self._teleop.command()
        self.driver, self._executed, self._grip, self._rested = "policy", None, None, False
        self._last, self._asked = None, False

    def listen(self) -> frozenset[Button]:
        """Read the device, change control accordingly, and return the buttons that were pressed."""
        self._said = said = self._teleop.command()
        if "estop" in said.buttons:
            return said.buttons
        moving = self._are_moving(said.action)
        if self.driver == "person" and "giveback" in said.buttons:
            self.driver, self._rested, self._asked = "policy", False, False
            self._tell()
        elif self.driver == "policy" and ("takeover" in said.buttons or (moving and self._rested)):
            self.take()
        self._rested = self._rested or not moving
        return said.buttons

    def take(self, asked: bool = False) -> None:
        """Give control to the person, whom the policy may have asked."""
        self.driver, self._last, self._asked = "person", self._executed, asked
        self._keep_grip(self._said.action)
        self._tell()

    def action(self) -> Vector | None:
        """Return the device's (D,) action; None if the person gives none.

        The gripper stays as the arm's was at the takeover until the person changes it, so that an object the policy
        held is not dropped.
        """
        if self._said.action is None:
            return None
        self._last = self._gripping(self._said.action)
        return self._last

    def stay(self) -> Vector | None:
        """Return the (D,) action that holds pose and gripper of an arm with relative actions; None for any other."""
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
        self._grip = (np.nan, np.nan)  # the person changed it: from here on theirs counts
        return action

    def begin_showing(self, observation: Observation) -> None:
        self._counts = _Shown(self._counts.episode + 1)
        self._tell()
        self._seen = observation.step
        self._teleop.show(observation, self._counters())

    def glance(self, observation: Observation | None) -> None:
        """Show an observation if it is newer than the last one shown."""
        if observation is not None and observation.step > self._seen:
            self._seen = observation.step
            self._teleop.show(observation, self._counters())

    def note(self, step: StepDone) -> None:
        self._executed = self._executed if step.result.executed is None else step.result.executed
        self._counts.steps += 1
        self._counts.corrected += step.intervention and not step.held

    def show(self, observation: Observation) -> None:
        self._tell()
        self._seen = observation.step
        self._teleop.show(observation, self._counters())

    def _keep_grip(self, action: Vector | None) -> None:
        self._grip = None
        if self._has_gripper and action is not None and self._executed is not None:
            self._grip = float(action[-1]), float(self._executed[-1])

    def _are_moving(self, action: Vector | None) -> bool:
        return action is not None and bool((np.abs(action) > self._least)[self._moves].any())

    def _tell(self) -> None:
        if isinstance(self._teleop, SharesControl):
            self._teleop.tell_driver(self.driver, self._executed)

    def _who(self) -> str:
        if self.driver == "policy":
            return "the policy"
        return "you: the policy is unsure" if self._asked else "you"

    def _counters(self) -> dict[str, str]:
        return {
            "drives": self._who(),
            "episode": str(self._counts.episode),
            "steps": str(self._counts.steps),
            "corrected": str(self._counts.corrected),
        }
