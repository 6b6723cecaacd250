"""lerobot's configuration of a policy of vla_robot."""

from __future__ import annotations

from dataclasses import dataclass

from lerobot.configs import PreTrainedConfig
from lerobot.optim import OptimizerConfig


@PreTrainedConfig.register_subclass("vla_robot")
@dataclass
class VlaRobotConfig(PreTrainedConfig):
    """A policy of vla_robot: a folder of `vla export lerobot`, or a name beside `--policy.type=vla_robot`.

    Attributes:
        policy: name, path or address of the policy, as `vla run --policy` takes it. None in a folder's config.json: the
            folder holds the policy.
        env: world whose arm a policy drives that does not say its own: "hold", "random", a published checkpoint.
        n_action_steps: rows of a chunk that are executed before the next one is requested; None for the key `rows` of
            the policy's recipe, and for all of them without it.
        seed: the k-th episode since the start draws from seed + k; a policy without randomness ignores it.
        units: units of what is not one of our worlds: "degrees" for lerobot's arms, "vla_robot" for the policy's own;
            see units.py. None refuses everything but our worlds.
        action_feature_names: names of the action's numbers; lerobot sets them from a dataset, and they are compared.
    """

    policy: str | None = None
    env: str | None = None
    n_action_steps: int | None = None
    seed: int = 0
    units: str | None = None
    action_feature_names: list[str] | None = None
    device: str | None = "cpu"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_action_steps is not None and self.n_action_steps < 1:
            raise ValueError(f"n_action_steps is {self.n_action_steps}; at least 1, or leave it out for whole chunks.")

    @property
    def observation_delta_indices(self) -> None:
        return None

    @property
    def action_delta_indices(self) -> None:
        return None

    @property
    def reward_delta_indices(self) -> None:
        return None

    def get_optimizer_preset(self) -> OptimizerConfig:
        """Raise NotImplementedError: lerobot-train cannot train it."""
        raise NotImplementedError(
            "a policy of vla_robot is trained by `vla finetune`, which reads lerobot's datasets; lerobot-train cannot."
        )

    def get_scheduler_preset(self) -> None:
        return None

    def validate_features(self) -> None:
        """Do nothing: `VlaRobotPolicy` compares the features with the policy's embodiment."""
