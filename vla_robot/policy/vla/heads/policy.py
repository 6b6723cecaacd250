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
from vla_robot.core.errors import CheckpointError, ContractError, PolicyError
from vla_robot.core.messages import ActionChunk, Observation
from vla_robot.core.normalise import unnormalise
from vla_robot.core.ports import ActionHead
from vla_robot.policy.vla.heads.noise import row_seed
from vla_robot.policy.vla.heads.prompted import Prompted
from vla_robot.policy.vla.inputs.observations import Batch, check_image_sensitivity
from vla_robot.policy.vla.inputs.preprocess import FramePreprocessor
from vla_robot.policy.vla.inputs.prompts import Prompts
from vla_robot.policy.vla.inputs.reader import chunks_of, require_observations
from vla_robot.policy.vla.inputs.statistics import Keys
from vla_robot.policy.vla.model import VLAModel
from vla_robot.policy.vla.policy import VLAPolicy
from vla_robot.policy.vla.reason.cpu_threads import threads_for
from vla_robot.policy.vla.reason.stage_timer import StageTimer


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
    ) -> None:
        """Raises CheckpointError if the model has no head."""
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
        for sizes in stats:
            if len(sizes) != self.head.dimension:
                raise ContractError(
                    f"the head gives {self.head.dimension} numbers per action, but the statistics have {len(sizes)}."
                )
        batch = self.read(observations, statistics_keys)
        stages.lap("preprocess")
        seeds = np.array([row_seed(self._seed, o.step) for o in observations], dtype=np.int64)
        normalised = self.predict(batch, seeds, stages)
        actions = [unnormalise(chunk, s) for chunk, s in zip(normalised, stats, strict=True)]
        stages.lap("unnormalise")
        return chunks_of(actions, observations, stages)

    @torch.inference_mode()
    def predict(self, batch: Batch, seeds: NDArray[np.int64], stages: StageTimer | None = None) -> NDArray[np.float64]:
        """Run the bare model on a batch of plain prompts: return (B, K, D) actions in [-1, 1].

        Args:
            batch: from `read`.
            seeds: (B,) from which each row's random numbers are drawn.
            stages: receives the time of each stage.

        Raises:
            ContractError: the batch does not fit the model.
            PolicyError: a number is not finite.
        """
        stages = stages or StageTimer()
        ended = replace(batch, prompts=[np.append(prompt, self.tokenizer.eos) for prompt in batch.prompts])
        with threads_for(self.flops(ended), self.device):
            prompts = self.model.prompted(self.model.prompt(ended, stages))
            actions = self.head.answer(prompts, seeds).cpu().double().numpy()  # MPS has no float64
        stages.lap("decode")
        if not np.isfinite(actions).all():
            raise PolicyError("the policy's actions are not finite: the checkpoint or its input is damaged.")
        return actions

    def self_test(self) -> None:
        """Raise CheckpointError if the model ignores its image or its actions are not finite."""
        seeds = np.zeros(2, dtype=np.int64)
        check_image_sensitivity(
            self.model.config.inputs,
            self.preprocessor,
            self._pixels,
            lambda batch: torch.from_numpy(self.predict(batch, seeds)),
        )


def policy_class(model: VLAModel[Any]) -> type[VLAPolicy[Any, Any, Any]]:
    """Return the class of a model's policy: of tokens, or of its head."""
    return VLAPolicy if model.action_head is None else HeadPolicy
