"""A model with an action head as a Policy: a chunk of numbers, without tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vla_robot.core.embodiment import Embodiment
from vla_robot.core.errors import CheckpointError, PolicyError
from vla_robot.core.messages import ActionChunk, Observation
from vla_robot.core.normalise import unnormalise
from vla_robot.core.ports import ActionHead
from vla_robot.core.ports.action_head import Plan
from vla_robot.policy.vla.codecs.rows import finite_actions
from vla_robot.policy.vla.heads.flow import FlowHead
from vla_robot.policy.vla.heads.noise import row_seed
from vla_robot.policy.vla.heads.plans import begun_by, joined, plan_of
from vla_robot.policy.vla.heads.prompted import Prompted
from vla_robot.policy.vla.heads.sizes import require_flow
from vla_robot.policy.vla.inputs.observations import Batch, check_image_sensitivity
from vla_robot.policy.vla.inputs.preprocess import FramePreprocessor
from vla_robot.policy.vla.inputs.prompts import Prompts
from vla_robot.policy.vla.inputs.reader import chunks_of, require_observations
from vla_robot.policy.vla.inputs.statistics import Keys, require_dimension
from vla_robot.policy.vla.model import VLAModel
from vla_robot.policy.vla.policy import VLAPolicy
from vla_robot.policy.vla.reason.cpu_threads import threads_for
from vla_robot.policy.vla.reason.stage_timer import StageTimer
from vla_robot.recipe.policy import FlowRecipe


class HeadPolicy[M: VLAModel[Any], T: Prompts, F: FramePreprocessor](VLAPolicy[M, T, F]):
    """A loaded checkpoint that acts through its head; in words it still answers questions.

    Attributes:
        head: gives the actions.
    """

    def __init__(
        self,
        model: M,
        preprocessor: F,
        tokenizer: T | None,
        statistics: Mapping[str, Mapping[str, Any]],
        embodiment: Embodiment | None = None,
        statistics_key: str | None = None,
        compiled: bool = False,
    ) -> None:
        """
        Raises:
            CheckpointError: the model has no head.
            PolicyError: `compiled`, which is for tokens.
        """
        require_tokens(compiled)
        super().__init__(model, preprocessor, tokenizer, statistics, embodiment, statistics_key)
        if model.action_head is None:
            raise CheckpointError("config.json names no head, so that actions are tokens.")
        self.head: ActionHead[Prompted, Tensor] = model.action_head
        self.in_blocks = False
        self._seed = 0

    def reset(self, seed: int) -> None:
        """Draw from `seed` from now on, where the head needs random numbers."""
        self._seed = seed

    def act(self, observations: Sequence[Observation], statistics_keys: Keys | None = None) -> list[ActionChunk]:
        """Return one chunk of `head.chunk` actions per observation, computed in one batch.

        A head that continues plans begins with `Observation.committed`, and stays near `Observation.planned`.

        Args:
            observations: with any instructions.
            statistics_keys: per row, the dataset whose statistics un-normalise; None for the policy's own.

        Raises:
            ContractError: a camera, the state, the instruction or the statistics do not fit.
            PolicyError: the model's output is not finite.
        """
        stages = self.model.timer()
        require_observations(observations)
        stats = self._statistics.rows("action", len(observations), statistics_keys)
        require_dimension(stats, self.head.dimension, f"the head gives {self.head.dimension} numbers per action")
        batch = self.read(observations, statistics_keys)
        stages.lap("preprocess")
        seeds = np.array([row_seed(self._seed, o.step) for o in observations], dtype=np.int64)
        plans = [plan_of(o, s, self.head) for o, s in zip(observations, stats, strict=True)]
        normalised = self.predict(batch, seeds, stages, joined(plans, self.head, self.device))
        actions = [unnormalise(chunk, s) for chunk, s in zip(normalised, stats, strict=True)]
        begun = [begun_by(o, rows, plan) for o, rows, plan in zip(observations, actions, plans, strict=True)]
        stages.lap("unnormalise")
        return chunks_of(begun, observations, stages, [plan is not None for plan in plans])

    @torch.no_grad()  # guidance may ask for a gradient, which no tensor of inference mode has
    def predict(
        self,
        batch: Batch,
        seeds: NDArray[np.int64],
        stages: StageTimer | None = None,
        plan: Plan[Tensor] | None = None,
    ) -> NDArray[np.float64]:
        """Run the bare model on a batch of plain prompts: return (B, K, D) actions in [-1, 1].

        Args:
            batch: from `read`.
            seeds: (B,) from which each row's random numbers are drawn.
            stages: receives the time of each stage.
            plan: what the answers continue.

        Raises:
            ContractError: the batch does not fit the model.
            PolicyError: a number is not finite.
        """
        stages = stages or StageTimer()
        ended = replace(batch, prompts=[np.append(prompt, self.tokenizer.eos) for prompt in batch.prompts])
        with threads_for(self.flops(ended), self.device):
            prompts = self.model.prompted(self.model.prompt(ended, stages))
            actions = self.head.answer(prompts, seeds, plan).cpu().double().numpy()  # MPS has no float64
        stages.lap("decode")
        return finite_actions(actions)

    def self_test(self) -> None:
        """Raise CheckpointError if the model ignores its image or its actions are not finite."""
        seeds = np.zeros(2, dtype=np.int64)
        check_image_sensitivity(
            self.model.config.inputs,
            self.model.config.frame,
            self.preprocessor,
            self._pixels,
            lambda batch: torch.from_numpy(self.predict(batch, seeds)),
        )


def sampling_as[P: VLAPolicy[Any, Any, Any]](policy: P, flow: FlowRecipe | None) -> P:
    """Return a policy that answers as a recipe's table [flow] says. Raises CheckpointError as `require_flow`."""
    require_flow(flow, policy.model.config.head)
    if flow is not None and isinstance(policy.model.action_head, FlowHead):
        policy.model.action_head.sample_as(flow)
    return policy


def require_tokens(compiled: bool) -> None:
    """Raise PolicyError if a policy of a head is to be compiled."""
    if compiled:
        raise PolicyError(
            "a policy whose actions come from a head cannot be compiled: leave compiled out of its recipe."
        )


def policy_class(model: VLAModel[Any]) -> type[VLAPolicy[Any, Any, Any]]:
    """Return the class of a model's policy: of tokens, or of its head."""
    return VLAPolicy if model.action_head is None else HeadPolicy
