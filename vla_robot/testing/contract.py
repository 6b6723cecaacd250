"""A port's contract as named sentences, and the code that the checks of several ports share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike

from vla_robot.core.embodiment import Embodiment
from vla_robot.core.errors import ContractError
from vla_robot.core.messages import Observation, StepResult, Vector
from vla_robot.core.ports import ReportsStages


class BrokenContractError(ContractError):
    """Error of an implementation that breaks a sentence of its port's contract.

    Attributes:
        port: name of the port, e.g. "World".
        sentence: name of the broken sentence, e.g. "counts"; see the CONTRACT of the check's module.
    """

    def __init__(self, port: str, sentence: str, message: str) -> None:
        super().__init__(message)
        self.port = port
        self.sentence = sentence


@dataclass(frozen=True)
class Sentence:
    """One promise of a port.

    Attributes:
        says: its text.
        remedy: how an implementation can keep it.
    """

    says: str
    remedy: str


@dataclass(frozen=True)
class Contract:
    """The promises of a port that a check tests.

    Attributes:
        port: its name.
        sentences: name -> promise.
    """

    port: str
    sentences: Mapping[str, Sentence]

    def require(self, holds: bool, name: str, seen: str) -> None:
        """Raise BrokenContractError unless a sentence holds.

        Args:
            holds: whether it does.
            name: name of the sentence.
            seen: the observed result.
        """
        if not holds:
            sentence = self.sentences[name]
            raise BrokenContractError(
                self.port, name, f"{self.port}, '{name}': {sentence.says} Seen: {seen}. {sentence.remedy}"
            )

    def require_refusal(self, call: Callable[[], object], errors: type[Exception], name: str, what: str) -> None:
        """Raise BrokenContractError unless a call raises one of the errors."""
        try:
            answer = call()
        except errors:
            return
        except Exception as error:
            self.require(False, name, f"{what} raised {type(error).__name__}: {error}")
        else:
            self.require(False, name, f"{what} was answered with {str(answer)[:200]}")

    def require_fit(self, embodiment: Embodiment, observation: Observation, name: str) -> None:
        """Raise BrokenContractError unless the cameras and the state are those of the embodiment, and finite."""
        try:
            embodiment.check(observation)
        except ContractError as error:
            self.require(False, name, str(error).rstrip("."))
        state = observation.state
        self.require(state.dtype == np.float64, name, f"the state's numbers are {state.dtype}")
        self.require(bool(np.isfinite(state).all()), name, f"the state is {state}")

    def require_stages(self, reporter: object, name: str) -> None:
        """Require that a world or an arm that reports its stages gives a time of each [ms]."""
        if isinstance(reporter, ReportsStages):
            stages_ms = dict(reporter.last_stages_ms)
            sound = all(isinstance(stage, str) and 0 <= ms < np.inf for stage, ms in stages_ms.items())
            self.require(sound, name, f"{stages_ms}")

    def require_executed(
        self, embodiment: Embodiment, asked: Vector, result: StepResult, name: str, inexact: ArrayLike = 0.0
    ) -> None:
        """Raise BrokenContractError unless each number that differs from the action has a clamp.

        Args:
            embodiment: embodiment of the arm.
            asked: (D,) the action.
            result: result of the step.
            name: name of the sentence.
            inexact: () or (D,) largest difference that needs no clamp, in the units of the action.
        """
        executed = result.executed
        if executed is None:
            self.require(False, name, "executed is None, though an action was sent")
            return
        self.require(executed.shape == asked.shape, name, f"executed has shape {executed.shape}, not {asked.shape}")
        changed = np.abs(executed - asked) > inexact
        silent = set(np.array(embodiment.action.names)[changed].tolist()) - {clamp.dim for clamp in result.clamps}
        self.require(not silent, name, f"{', '.join(sorted(silent))} differs from {asked} in {executed}, without clamp")


class Closable(Protocol):
    """An object with `close`."""

    def close(self) -> None: ...


@contextlib.contextmanager
def closed_in_the_end[T: Closable](made: T) -> Generator[T]:
    """Close `made` after the block; an error of `close` does not replace the block's own."""
    try:
        yield made
    finally:
        with contextlib.suppress(Exception):
            made.close()


def require_embodiment(contract: Contract, embodiment: Embodiment, instruction: str) -> None:
    """Raise BrokenContractError unless the embodiment survives to_dict and from_dict, and the instruction is a text."""
    there = Embodiment.from_dict(embodiment.to_dict())
    contract.require(there == embodiment, "travels", f"{embodiment} became {there}")
    is_text = isinstance(instruction, str) and bool(instruction.strip())
    contract.require(is_text, "instructs", f"instruction is {instruction!r}")


TRAVELS = Sentence(
    "embodiment is the same after to_dict and from_dict.",
    "Build it of tuples, str and float, as the dataclass's fields say.",
)
INSTRUCTS = Sentence(
    "instruction is the task in plain words.", "Return a text of at least one word; policies are asked with it."
)
TIMES = Sentence(
    "A world or an arm that reports its stages gives the milliseconds of each, by name.",
    "Measure with a monotonic clock, and convert with float().",
)
FITS = Sentence(
    "Each observation holds the cameras and the state that the embodiment announces, (H, W, 3) uint8 RGB and (S,) "
    "float64, finite.",
    "Make the frames and the state of the sizes in `embodiment`, or announce others.",
)


def content(observation: Observation) -> tuple[bytes, ...]:
    """Return an observation's data without its stamps; equal for observations that are equal bit for bit."""
    frames = (observation.images[name].tobytes() for name in sorted(observation.images))
    return (observation.state.tobytes(), observation.instruction.encode(), *frames)


def rest_action(embodiment: Embodiment, state: Vector) -> Vector:
    """Return (D,) an action without motion: zeros, or the measured joints; the gripper is open."""
    space = embodiment.action
    measured = {dim.name: float(value) for dim, value in zip(embodiment.state, state, strict=True)}
    stay = [0.0 if space.kind == "eef_delta" else measured.get(name, 0.0) for name in space.names[:-1]]
    return np.clip(np.array([*stay, space.high[-1]]), space.low, space.high)


def small_action(embodiment: Embodiment, state: Vector, share: float = 0.25) -> Vector:
    """Return (D,) `rest_action` plus a share of each dimension's distance to its upper limit; the gripper stays."""
    rest = rest_action(embodiment, state)
    step = share * (embodiment.action.high - rest)
    step[-1] = 0.0
    return rest + step
