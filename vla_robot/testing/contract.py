"""A port's contract as numbered sentences, and what the checks of several ports share."""

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


class BrokenContractError(ContractError):
    """An implementation of a port does not do what the port promises.

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
        says: the promise.
        remedy: what an implementation does to keep it.
    """

    says: str
    remedy: str


@dataclass(frozen=True)
class Contract:
    """All promises of a port that a check can ask for.

    Attributes:
        port: its name.
        sentences: by name.
    """

    port: str
    sentences: Mapping[str, Sentence]

    def require(self, holds: bool, name: str, seen: str) -> None:
        """Raise BrokenContractError unless a sentence holds.

        Args:
            holds: whether it does.
            name: of the sentence.
            seen: what was seen instead.
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

    def require_executed(
        self, embodiment: Embodiment, asked: Vector, result: StepResult, name: str, inexact: ArrayLike = 0.0
    ) -> None:
        """Raise BrokenContractError unless each number that differs from what was asked for has a clamp.

        Args:
            embodiment: of the arm.
            asked: (D,) the action.
            result: what came of it.
            name: of the sentence.
            inexact: () or (D,) a smaller difference than this is none, in the units of the action.
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
    """What is released in the end."""

    def close(self) -> None: ...


@contextlib.contextmanager
def closed_in_the_end[T: Closable](made: T) -> Generator[T]:
    """Close what was made after the block; a failure of that does not take the place of what the block found."""
    try:
        yield made
    finally:
        with contextlib.suppress(Exception):
            made.close()


def require_embodiment(contract: Contract, embodiment: Embodiment, instruction: str) -> None:
    """Raise BrokenContractError unless both survive the way to another process: "travels" and "instructs"."""
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
FITS = Sentence(
    "Each observation holds the cameras and the state that the embodiment announces, (H, W, 3) uint8 RGB and (S,) "
    "float64, finite.",
    "Make the frames and the state of the sizes in `embodiment`, or announce others.",
)


def content(observation: Observation) -> tuple[bytes, ...]:
    """All that is seen, without the stamps; two of them are equal when the observations are, bit for bit."""
    frames = (observation.images[name].tobytes() for name in sorted(observation.images))
    return (observation.state.tobytes(), observation.instruction.encode(), *frames)


def rest_action(embodiment: Embodiment, state: Vector) -> Vector:
    """(D,) an action that keeps the arm where it is: no motion, or the measured joints; the gripper stays open."""
    space = embodiment.action
    measured = {dim.name: float(value) for dim, value in zip(embodiment.state, state, strict=True)}
    stay = [0.0 if space.kind == "eef_delta" else measured.get(name, 0.0) for name in space.names[:-1]]
    return np.clip(np.array([*stay, space.high[-1]]), space.low, space.high)


def small_action(embodiment: Embodiment, state: Vector, share: float = 0.25) -> Vector:
    """(D,) an action beside `rest_action` by a share of each dimension's way to its upper limit; the gripper rests."""
    rest = rest_action(embodiment, state)
    step = share * (embodiment.action.high - rest)
    step[-1] = 0.0
    return rest + step
