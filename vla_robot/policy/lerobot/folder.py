"""Reads the JSON files of a policy folder that lerobot wrote, and refuses what they must not say.

    config.json                     type, features and sizes
    model.safetensors               the weights
    policy_preprocessor.json        steps before the model, each with the name of its class in lerobot's registry
    policy_postprocessor.json       steps after it
    policy_..._step_K_....safetensors   the statistics of a step
    embodiment.json                 ours, optional: the arm of the training (core/embodiment.py)

lerobot itself would import any class that a step names, fetch any model that a name points to, and run code that comes
with it. Here only the steps in `STEPS` are allowed, every name is looked up on this computer, and no file names a path.

Source: lerobot 0.6.1, configs/policies.py, processor/pipeline.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_robot.core.embodiment import Embodiment
from vla_robot.core.errors import CheckpointError, ContractError, unknown
from vla_robot.core.untrusted import malformed, read_json, require_name
from vla_robot.policy.lerobot.families import Family, family_of

CONFIG, WEIGHTS, EMBODIMENT = "config.json", "model.safetensors", "embodiment.json"
PREPROCESSOR, POSTPROCESSOR = "policy_preprocessor.json", "policy_postprocessor.json"
TOKENIZER_STEP = "tokenizer_processor"

STEPS = frozenset(
    {
        "absolute_actions_processor",
        "device_processor",
        "normalizer_processor",
        "pi05_prepare_state_tokenizer_processor_step",
        "pi0_new_line_processor",
        "relative_actions_processor",
        "rename_observations_processor",
        "smolvla_new_line_processor",
        "to_batch_processor",
        TOKENIZER_STEP,
        "unnormalizer_processor",
    }
)
"""Steps that the families here have, by their names in lerobot's registry."""

STATE, ACTION, IMAGE = "observation.state", "action", "observation.images."
SINGLE_IMAGE = "observation.image"
MAX_NUMBERS = 1000
"""Most numbers of a state or an action."""


@dataclass(frozen=True)
class PolicyFolder:
    """The checked description of a policy.

    Attributes:
        path: the folder.
        kind: lerobot's type, such as "act".
        family: how it is run.
        config: config.json without `type`.
        preprocessor: its steps, in order.
        postprocessor: its steps, in order.
        embodiment: the arm of its training, if the folder says it.
    """

    path: Path
    kind: str
    family: Family
    config: Mapping[str, Any]
    preprocessor: tuple[Mapping[str, Any], ...]
    postprocessor: tuple[Mapping[str, Any], ...]
    embodiment: Embodiment | None

    @property
    def weights(self) -> Path:
        return self.path / WEIGHTS

    @property
    def earlier_steps(self) -> int:
        """Earlier observations that it reads beside the present one."""
        return self.config.get("n_obs_steps", 1) - 1

    @property
    def renamed(self) -> Mapping[str, str]:
        """Feature of the policy -> name that its preprocessor is given, where they differ."""
        maps = (s["config"].get("rename_map", {}) for s in self.preprocessor if "rename" in s["registry_name"])
        return {new: old for entry in maps for old, new in entry.items()}

    @property
    def tokenizer(self) -> str | None:
        """The hub's name of its tokenizer; None for a policy that reads no text."""
        steps = [step for step in self.preprocessor if step["registry_name"] == TOKENIZER_STEP]
        return str(steps[0]["config"]["tokenizer_name"]) if steps else None

    def image_sizes(self) -> dict[str, tuple[int, int]]:
        """Return image feature -> (height, width) [px], in the policy's order, without its empty cameras."""
        features = self.config["input_features"].items()
        images = {name: f["shape"] for name, f in features if f["type"] == "VISUAL" and "empty_camera" not in name}
        return {name: (shape[1], shape[2]) for name, shape in images.items()}

    def width(self, feature: str) -> int | None:
        """Return the number of numbers of the state or the action; None if the policy has none."""
        found = {**self.config["input_features"], **self.config["output_features"]}.get(feature)
        return None if found is None else found["shape"][0]


def read_folder(path: Path, embodiment: Path | None = None) -> PolicyFolder:
    """Read and check the JSON files of a folder.

    Args:
        path: lerobot's folder `pretrained_model`.
        embodiment: file with the embodiment of its training; None for the folder's own, if there is one.

    Raises:
        CheckpointError: a file is missing, damaged, or says what it must not.
    """
    config = dict(_read(path, CONFIG))
    with malformed(path / CONFIG, CheckpointError):
        kind = str(config.pop("type"))
        family = family_of(kind, path / CONFIG)
        _check_config(config, path / CONFIG)
    if not (path / WEIGHTS).is_file():
        raise CheckpointError(f"{path / WEIGHTS} is missing.")
    return PolicyFolder(
        path,
        kind,
        family,
        config,
        tuple(_steps(path, PREPROCESSOR)),
        tuple(_steps(path, POSTPROCESSOR)),
        _embodiment(path / EMBODIMENT if embodiment is None else embodiment, embodiment is not None),
    )


def _read(folder: Path, name: str) -> Mapping[str, Any]:
    try:
        data = read_json(folder / name, CheckpointError)
    except OSError as error:
        hint = ""
        if (folder / "pretrained_model" / CONFIG).is_file():
            hint = f" The policy is in {folder / 'pretrained_model'}."
        elif name in (PREPROCESSOR, POSTPROCESSOR):
            hint = (
                " Folders of lerobot before 0.4 have none: convert it with lerobot's own "
                "`python -m lerobot.processor.migrate_policy_normalization --pretrained-path FOLDER`."
            )
        raise CheckpointError(f"{folder / name} cannot be read: {error.strerror or error}.{hint}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{folder / name} holds a {type(data).__name__}, expected an object.")
    return data


def _check_config(config: Mapping[str, Any], where: Path) -> None:
    if config.get("use_peft"):
        raise CheckpointError(
            f"{where}: these are adapters without their base model; merge them with peft, and save it."
        )
    _refuse_remote_code(config, where)
    for name, feature in {**config["input_features"], **config["output_features"]}.items():
        _check_feature(name, feature["type"], list(feature["shape"]), where)
    if ACTION not in config["output_features"]:
        raise CheckpointError(f"{where}: output_features has no '{ACTION}'.")
    if not 1 <= int(config.get("n_obs_steps", 1)) <= 100:
        raise CheckpointError(f"{where}: n_obs_steps {config['n_obs_steps']} is outside 1 to 100.")


def _check_feature(name: str, kind: str, shape: list[int], where: Path) -> None:
    if kind == "VISUAL":
        fits = len(shape) == 3 and shape[0] == 3 and all(1 <= edge <= 1 << 13 for edge in shape[1:])
        fits = fits and (name.startswith(IMAGE) or name == SINGLE_IMAGE)
    elif kind in ("STATE", "ACTION"):
        fits = len(shape) == 1 and 1 <= shape[0] <= MAX_NUMBERS and (kind == "ACTION" or name == STATE)
    else:
        raise CheckpointError(
            f"{where}: '{name}' is a feature of type {kind}, which no robot has: a policy here reads cameras, "
            f"'{STATE}' and the task."
        )
    if not fits:
        raise CheckpointError(f"{where}: '{name}' of type {kind} and shape {shape} is not a feature that is read here.")


def _steps(folder: Path, name: str) -> Iterator[Mapping[str, Any]]:
    data, where = _read(folder, name), folder / name
    with malformed(where, CheckpointError):
        for step in data["steps"]:
            registered = step.get("registry_name")
            if "class" in step or registered not in STEPS:
                named = step.get("class", registered)
                raise CheckpointError(
                    f"{where}: {unknown('step', named, STEPS)} No other class is imported, whatever a file says."
                )
            _refuse_remote_code(step, where)
            if (state := step.get("state_file")) is not None:
                require_name(state, "a step's state_file", where, CheckpointError)
                if not (folder / state).is_file():
                    raise CheckpointError(f"{folder / state} is missing; {name} needs it.")
            yield {"config": {}, **step}


def _refuse_remote_code(value: Any, where: Path) -> None:
    """Raise CheckpointError if code from the hub is to run."""
    if isinstance(value, Mapping):
        for key, below in value.items():
            if "remote_code" in str(key) and below:
                raise CheckpointError(f"{where}: {key} asks to run code from the hub, which is never done here.")
            _refuse_remote_code(below, where)
    elif isinstance(value, list):
        for below in value:
            _refuse_remote_code(below, where)


def _embodiment(path: Path, required: bool) -> Embodiment | None:
    if not path.is_file() and not required:
        return None
    try:
        return Embodiment.from_dict(read_json(path, CheckpointError))
    except OSError as error:
        raise CheckpointError(f"the embodiment {path} cannot be read: {error.strerror or error}.") from error
    except ContractError as error:
        raise CheckpointError(f"{path}: {error}") from error
