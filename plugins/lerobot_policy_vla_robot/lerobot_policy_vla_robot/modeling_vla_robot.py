"""A policy of vla_robot as one of lerobot's."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from huggingface_hub import snapshot_download
from lerobot.configs import PreTrainedConfig
from lerobot.policies import PreTrainedPolicy
from torch import Tensor

from lerobot_policy_vla_robot.configuration_vla_robot import VlaRobotConfig
from lerobot_policy_vla_robot.features import EMBODIMENT_KEY, input_features, observations_of, require_features
from lerobot_policy_vla_robot.saved_folder import Loaded, load_by_name, load_folder, read_named_policy, write_policy
from lerobot_policy_vla_robot.units import factors, require_units, unknown_source
from vla_robot.core.clock import MonotonicClock
from vla_robot.core.embodiment import Embodiment
from vla_robot.core.errors import ContractError
from vla_robot.core.messages import ActionChunk
from vla_robot.policy.adapter import ObservationAdapter
from vla_robot.policy.execution_horizon import with_rows


class VlaRobotPolicy(PreTrainedPolicy):
    """Answers lerobot's batches with actions of a policy of vla_robot, in its own units.

    Rows of a batch are one call of the policy. The weights belong to vla_robot: this module has no parameters, and
    lerobot cannot train it.
    """

    config_class = VlaRobotConfig  # pyright: ignore[reportAssignmentType]  # lerobot declares None
    name = "vla_robot"  # pyright: ignore[reportAssignmentType]

    def __init__(self, config: VlaRobotConfig, *, loaded: Loaded | None = None, **_: Any) -> None:
        """
        Args:
            config: names the policy; lerobot also writes the features of environment or dataset into it.
            loaded: the policy, if it is loaded already; the configuration names none then.

        Raises:
            VlaError: the policy cannot be loaded, or does not fit these features.
        """
        super().__init__(config)
        self.config: VlaRobotConfig = config
        self._loaded = loaded or load_by_name(config.policy, config.env)
        embodiment = self._loaded.embodiment
        known = config.input_features or {}
        require_features(embodiment, known, config.output_features or {}, config.action_feature_names)
        require_units(config.units, embodiment)
        config.input_features = known or input_features(embodiment)
        self._clock = MonotonicClock()
        self._offered: Embodiment | None = None
        self._adapted = ObservationAdapter(self._loaded.policy, embodiment, embodiment)
        self._episodes = 0
        self._begin()

    @property
    def embodiment(self) -> Embodiment:
        """The arm that the policy was made for."""
        return self._loaded.embodiment

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls,
        pretrained_name_or_path: str | Path | None,
        *,
        config: PreTrainedConfig | None = None,
        revision: str | None = None,
        **options: Any,
    ) -> Self:
        """Load a folder of `vla export lerobot` or `save_pretrained`, local or on the hub.

        Args:
            pretrained_name_or_path: the folder, or its name on the hub; None loads the policy that `config` names.
            config: with lerobot's changes; read from the folder if None.
            revision: commit, branch or tag on the hub.
            options: lerobot's other options; `cache_dir` and `local_files_only` are used.

        Raises:
            VlaError: the folder is incomplete, names a policy outside of it, or does not fit `config`.
        """
        if pretrained_name_or_path is None:
            assert isinstance(config, VlaRobotConfig)
            return cls(config)
        folder = Path(pretrained_name_or_path)
        if not folder.is_dir():
            kept = {key: options[key] for key in ("cache_dir", "local_files_only") if key in options}
            folder = Path(snapshot_download(str(pretrained_name_or_path), revision=revision, **kept))
        config = config or PreTrainedConfig.from_pretrained(folder)
        assert isinstance(config, VlaRobotConfig)
        if named := read_named_policy(folder) or config.policy:
            raise ContractError(
                f"{folder} holds its policy, but the policy '{named}' is named, too. Leave one of both out: "
                "--policy.path=FOLDER, or --policy.type=vla_robot --policy.policy=NAME."
            )
        return cls(config, loaded=load_folder(folder)).eval()

    def reset(self) -> None:
        """Begin an episode: forget the chunk, and draw from the next seed."""
        self._loaded.policy.reset(self.config.seed + self._episodes)
        self._episodes += 1
        self._begin()

    def predict_action_chunk(self, batch: dict[str, Any], **_: Any) -> Tensor:
        """Return (B, T, D) float64 actions from the batch's step on, in the embodiment's units or those of `units`.

        Raises:
            ContractError: the batch lacks what the policy reads, or comes from a world that does not fit it.
            PolicyError: the policy has no valid action.
        """
        return _stacked(self._answers(batch))

    def select_action(self, batch: dict[str, Any], **_: Any) -> Tensor:
        """Return the (B, D) actions of this step; a new chunk is requested when the rows of the last one are used."""
        if not self._rows:
            chunks, used = self._answers(batch), self.config.n_action_steps
            chunks = chunks if used is None else [with_rows(chunk, used) for chunk in chunks]
            horizon = min(chunk.rows or len(chunk.actions) for chunk in chunks)
            self._rows.extend(_stacked(chunks)[:, :horizon].unbind(dim=1))
        self._step += 1
        return self._rows.popleft()

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Any] | None]:
        """Raise NotImplementedError: `vla finetune` trains policies of vla_robot."""
        raise NotImplementedError("lerobot cannot train a policy of vla_robot; `vla finetune` can.")

    def get_optim_params(self) -> dict[str, Any]:
        """Raise NotImplementedError, as `forward`."""
        raise NotImplementedError("lerobot cannot train a policy of vla_robot; `vla finetune` can.")

    def _save_pretrained(self, save_directory: Path, state_dict: Mapping[str, Tensor] | None = None) -> None:
        """Write the whole policy into the folder, so that it may be moved and shared."""
        write_policy(save_directory, self._loaded, self.config)

    def _answers(self, batch: Mapping[str, Any]) -> list[ActionChunk]:
        """Return the policy's chunk for each row of a batch."""
        self._meet(batch)
        offered = self._offered or self.embodiment
        cameras = [camera.name for camera in self.embodiment.cameras]
        size = len(offered.state) if self.embodiment.state else 0
        observations = observations_of(batch, cameras, size, self._clock.now_ns(), self._step)
        if self._offered is not None:
            return self._adapted.act(observations)
        units = self.config.units
        per_state, per_action = factors(self.embodiment.state, units), factors(self.embodiment.action.dims, units)
        chunks = self._adapted.act([replace(seen, state=seen.state / per_state) for seen in observations])
        return [replace(chunk, actions=chunk.actions * per_action) for chunk in chunks]

    def _begin(self) -> None:
        self._rows: deque[Tensor] = deque()
        self._step = 0

    def _meet(self, batch: Mapping[str, Any]) -> None:
        """Compare the policy with the world of a batch, once for each world; refuse what does not say what it is."""
        offered = batch.get(EMBODIMENT_KEY)
        if offered is None and self.config.units is None:
            raise unknown_source(self.embodiment)
        if offered != self._offered:
            self._adapted = ObservationAdapter(self._loaded.policy, self.embodiment, offered or self.embodiment)
            self._offered = offered


def _stacked(chunks: Sequence[ActionChunk]) -> Tensor:
    """Return (B, T, D) actions of the first T control steps that all chunks have."""
    length = min(len(chunk.actions) for chunk in chunks)
    return torch.from_numpy(np.stack([chunk.actions[:length] for chunk in chunks]))
