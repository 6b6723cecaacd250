"""The contract of a Policy, and its check."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from vla_robot.core.embodiment import Embodiment
from vla_robot.core.messages import ActionChunk, Observation
from vla_robot.core.ports import Policy, PreparesAhead
from vla_robot.testing.contract import Contract, Sentence, content
from vla_robot.testing.embodiments import toy_observation

CONTRACT = Contract(
    "Policy",
    {
        "is_policy": Sentence(
            "It has reset and act.", "Write both methods of vla_robot.core.ports.Policy; no base class is needed."
        ),
        "answers_each": Sentence(
            "act gives one chunk for each observation, in their order.", "Return a list as long as `observations`."
        ),
        "names_cause": Sentence(
            "A chunk carries stamp_ns and step of its observation.",
            "Build it as ActionChunk(actions, observation.stamp_ns, observation.step).",
        ),
        "is_actions": Sentence(
            "actions is (T, D) float64, T at least 1 and D the action space's, all finite.",
            "Convert with np.asarray(..., np.float64), undo the normalisation, and raise PolicyError where no valid "
            "action exists.",
        ),
        "tells_entropy": Sentence(
            "entropy is None, or the mean entropy of the answer's tokens: finite and not negative.",
            "Leave it out if the policy does not answer in tokens: it is compared with thresholds in nats.",
        ),
        "leaves_seen": Sentence("act does not change its observations.", "Copy an array before writing into it."),
        "keeps": Sentence("A chunk does not change after it was given.", "Give each chunk an array of its own."),
        "forgets": Sentence(
            "After reset with the same seed, the same observations get the same answers.",
            "Clear histories, queues and caches in reset, and draw from a generator made of its seed.",
        ),
        "rows_apart": Sentence(
            "Rows of a batch do not influence each other: an observation gets the answer that it gets alone.",
            "Keep reductions and normalisations inside of one row, and mask the padding.",
        ),
        "prepares": Sentence(
            "An observation that the policy prepared gets the answer of the plain one, beside plain ones too.",
            "Keep everything in it that act reads, stamp_ns and step included.",
        ),
    },
)
"""Sentences that `check_policy` checks."""


def check_policy(
    make_policy: Callable[[], Policy],
    embodiment: Embodiment,
    observations: Sequence[Observation] = (),
    *,
    seed: int = 1,
    tolerance: float = 0.0,
    batched: bool = True,
) -> None:
    """Check that a policy keeps its contract: see CONTRACT, and `vla_robot.core.ports.Policy`.

    Args:
        make_policy: builds the policy; called once.
        embodiment: embodiment of the driven arm.
        observations: two or more of one episode, from step 0 on; by default grey frames and a state mid-range.
        seed: seed of the resets.
        tolerance: largest difference between two answers to the same question, in the units of the action: another
            batch size is rounded differently.
        batched: also ask with several observations at once; False for a policy that uses a random generator or serves
            a single episode.

    Raises:
        BrokenContractError: a sentence does not hold; the message quotes it and says what to do.
    """
    policy = make_policy()
    CONTRACT.require(isinstance(policy, Policy), "is_policy", f"{type(policy).__name__} lacks some of it")
    asked = list(observations) or [toy_observation(embodiment, step, stamp_ns=1000 + step) for step in range(2)]
    policy.reset(seed)
    before = [content(observation) for observation in asked]
    answers: list[ActionChunk] = []
    kept: list[NDArray[np.float64]] = []
    for observation in asked:
        answers += _ask(policy, embodiment, [observation])
        kept.append(answers[-1].actions.copy())
    CONTRACT.require([content(o) for o in asked] == before, "leaves_seen", "an array of an observation changed")
    _check_again(policy, embodiment, asked, kept, seed, tolerance)
    same = all(np.array_equal(chunk.actions, actions) for chunk, actions in zip(answers, kept, strict=True))
    CONTRACT.require(same, "keeps", "actions changed when the policy was asked again")
    if batched:
        _check_rows(policy, embodiment, asked, kept, seed, tolerance)
    if isinstance(policy, PreparesAhead):
        _check_prepared(policy, embodiment, asked, kept, tolerance)


def _check_again(
    policy: Policy,
    embodiment: Embodiment,
    asked: Sequence[Observation],
    kept: Sequence[NDArray[np.float64]],
    seed: int,
    tolerance: float,
) -> None:
    policy.reset(seed)
    for actions, observation in zip(kept, asked, strict=True):
        again = _ask(policy, embodiment, [observation])[0].actions
        CONTRACT.require(_near(again, actions, tolerance), "forgets", f"another answer at step {observation.step}")


def _check_prepared(
    policy: PreparesAhead,
    embodiment: Embodiment,
    asked: Sequence[Observation],
    kept: Sequence[NDArray[np.float64]],
    tolerance: float,
) -> None:
    """Ask with all observations prepared, then with the first one alone."""
    assert isinstance(policy, Policy)
    ready = [policy.prepare(observation) for observation in asked]
    for rows in (ready, [ready[0], *asked[1:]]):
        for row, (chunk, own) in enumerate(zip(_ask(policy, embodiment, rows), kept, strict=True)):
            CONTRACT.require(_near(chunk.actions, own, tolerance), "prepares", f"row {row} got another answer")


def _check_rows(
    policy: Policy,
    embodiment: Embodiment,
    asked: Sequence[Observation],
    alone: Sequence[NDArray[np.float64]],
    seed: int,
    tolerance: float,
) -> None:
    policy.reset(seed)
    together = _ask(policy, embodiment, asked)
    for row, (chunk, own) in enumerate(zip(together, alone, strict=True)):
        seen = f"row {row} of a batch of {len(asked)} got another answer than alone"
        CONTRACT.require(_near(chunk.actions, own, tolerance), "rows_apart", seen)


def _ask(policy: Policy, embodiment: Embodiment, observations: Sequence[Observation]) -> list[ActionChunk]:
    """Return the policy's answers after checking the form of each."""
    chunks = policy.act(observations)
    seen = f"{len(chunks)} chunks for {len(observations)} observations"
    CONTRACT.require(len(chunks) == len(observations), "answers_each", seen)
    for chunk, observation in zip(chunks, observations, strict=True):
        cause = (chunk.stamp_ns, chunk.step)
        wanted = (observation.stamp_ns, observation.step)
        CONTRACT.require(cause == wanted, "names_cause", f"stamp and step {cause}, not {wanted}")
        _check_actions(chunk.actions, len(embodiment.action))
        nats = chunk.entropy
        CONTRACT.require(nats is None or 0 <= nats < np.inf, "tells_entropy", f"{nats}")
    return chunks


def _check_actions(actions: object, width: int) -> None:
    if not isinstance(actions, np.ndarray):
        CONTRACT.require(False, "is_actions", f"a {type(actions).__name__}")
        return
    fits = actions.ndim == 2 and len(actions) > 0 and actions.shape[1] == width and actions.dtype == np.float64
    CONTRACT.require(fits, "is_actions", f"shape {actions.shape} of {actions.dtype}, where D is {width}")
    CONTRACT.require(bool(np.isfinite(actions).all()), "is_actions", f"{actions}")


def _near(first: NDArray[np.float64], second: NDArray[np.float64], tolerance: float) -> bool:
    return first.shape == second.shape and bool(np.abs(first - second).max() <= tolerance)
