"""A policy that lerobot trained, as a Policy: any observation in, one chunk of actions in the arm's units out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vla_robot.core.embodiment import Embodiment
from vla_robot.core.errors import ContractError, PolicyError, in_words
from vla_robot.core.messages import ActionChunk, Observation
from vla_robot.policy.lerobot.families import Family
from vla_robot.policy.lerobot.features import Features
from vla_robot.policy.lerobot.noise import SeededScheduler
from vla_robot.policy.lerobot.processors import is_relative
from vla_robot.policy.vla.heads.noise import draw, generators_of, row_seed
from vla_robot.policy.vla.reason.stage_timer import StageTimer

Rows = NDArray[np.float64]


class LeRobotPolicy:
    """Asks lerobot's `predict_action_chunk`, and never `select_action`, which answers from queues of its own.

    Attributes:
        embodiment: the arm of its training; None if neither folder nor recipe says it.
        history_steps: earlier observations that it reads.
    """

    def __init__(
        self,
        model: Any,
        processors: tuple[Any, Any],
        family: Family,
        features: Features,
        *,
        embodiment: Embodiment | None,
        history_steps: int,
        whole_chunks: bool,
    ) -> None:
        """
        Args:
            model: lerobot's policy, with its weights.
            processors: lerobot's pipelines before and after the model.
            family: how it is run.
            features: names and units.
            embodiment: the arm of its training.
            history_steps: earlier observations that it reads.
            whole_chunks: give all actions of a chunk, and not only the `n_action_steps` that lerobot executes.
        """
        self.embodiment = embodiment
        self.history_steps = history_steps
        self._model = model
        self._before, self._after = processors
        self._family = family
        self._features = features
        self._rows = None if whole_chunks else model.config.n_action_steps
        self._seed = 0
        self._scheduler: SeededScheduler | None = None
        if hasattr(model, "diffusion"):
            self._scheduler = model.diffusion.noise_scheduler = SeededScheduler(model.diffusion.noise_scheduler)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return torch.device(self._model.config.device)

    def reset(self, seed: int) -> None:
        """Begin an episode: noise is drawn from this seed and the step of each observation."""
        self._seed = seed
        self._model.reset()

    def act(self, observations: Sequence[Observation], statistics_keys: Sequence[str | None] = ()) -> list[ActionChunk]:
        """Return one chunk per observation. Rows with as many committed actions are computed in one batch.

        A policy with real-time chunking is guided to begin with the committed actions, which the chunk then repeats.

        Args:
            observations: with any instructions.
            statistics_keys: per row, None: a policy of lerobot's has one set of statistics.

        Raises:
            ContractError: a camera, the state or a committed action does not fit, or a key is given.
            PolicyError: the model failed, or its output is not finite.
        """
        if any(statistics_keys):
            raise ContractError("a policy of lerobot's has one set of statistics: leave statistics_key out.")
        if not observations:
            raise ContractError("the policy was asked with no observation.")
        groups: dict[int, list[int]] = defaultdict(list)
        for row, observation in enumerate(observations):
            groups[self._num_committed(observation)].append(row)
        chunks: dict[int, ActionChunk] = {}
        for committed, rows in groups.items():
            chunks |= zip(rows, self._answers([observations[row] for row in rows], committed), strict=True)
        return [chunks[row] for row in range(len(observations))]

    def _num_committed(self, observation: Observation) -> int:
        """Return the number of committed actions that its answer is guided by; one action stays the policy's choice."""
        if observation.committed is None or not self._family.has_rtc or is_relative(self._before):
            return 0
        return min(len(observation.committed), self._model.config.chunk_size - 1)

    def _answers(self, observations: Sequence[Observation], committed: int) -> list[ActionChunk]:
        """Return the chunks of observations with `committed` committed actions each."""
        stages = StageTimer()
        batch = self._features.batch(observations)
        if committed:
            batch["action"] = torch.from_numpy(self._committed(observations, committed).astype(np.float32))
        try:
            with torch.autocast(
                self.device.type, enabled=self._model.config.use_amp
            ):  # as lerobot-eval: processors too
                actions = self._predict(batch, [row_seed(self._seed, o.step) for o in observations], committed, stages)
        except Exception as error:
            raise PolicyError(f"lerobot's policy failed: {in_words(error)}.") from error
        if not np.isfinite(actions).all():
            raise PolicyError("lerobot's policy gave an action that is not finite.")
        actions = self._features.to_arm(actions)
        stages.lap("postprocess")
        return [
            ActionChunk(
                _begun(o, rows, committed),
                o.stamp_ns,
                o.step,
                stages.ms,
                conditioned=committed > 0,
            )
            for o, rows in zip(observations, actions, strict=True)
        ]

    @torch.no_grad()
    def _predict(self, batch: dict[str, Any], seeds: Sequence[int], committed: int, stages: StageTimer) -> Rows:
        """Return (B, K, D) actions in the policy's units."""
        batch = self._before(batch)
        options: dict[str, Any] = {}
        if committed:
            left_over = batch.pop("action")  # (B, n, D), normalised
            options = {"inference_delay": committed, "prev_chunk_left_over": left_over, "execution_horizon": committed}
        if self._family.noise is not None:
            generators = generators_of(seeds)
            options["noise"] = draw(generators, self._family.noise(self._model.config)).to(self._model.config.device)
            if self._scheduler is not None:
                self._scheduler.generators = generators
        stages.lap("preprocess")
        chunk = self._model.predict_action_chunk(batch, **options)[:, : self._rows]
        stages.lap("model")
        return self._after(chunk).double().cpu().numpy()

    def _committed(self, observations: Sequence[Observation], count: int) -> Rows:
        """Return (B, count, D) committed actions in the policy's units."""
        rows = [o.committed[:count] for o in observations if o.committed is not None]
        wide = {row.shape[1] for row in rows if row.shape[1] != self._model.config.action_feature.shape[0]}
        if wide or not all(np.isfinite(row).all() for row in rows):
            raise ContractError(
                "the arm has committed to actions that are not finite, or of another number of numbers."
            )
        return self._features.from_arm(np.stack(rows))


def _begun(observation: Observation, rows: Rows, committed: int) -> Rows:
    """Return the (K, D) rows with the committed actions, which the arm executes unchanged, in place of the first."""
    if observation.committed is None or not committed:
        return rows
    return np.concatenate([observation.committed[:committed], rows[committed:]])
