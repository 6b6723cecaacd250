"""What a folder must not say or lack: an error with the file and the way out, before anything acts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from vla_robot.core.errors import CheckpointError, ContractError, RecipeError
from vla_robot.policy.kinds import check_policy, load_policy
from vla_robot.recipe.policy import LeRobotRecipe, OpenVLARecipe
from vla_robot.recipe.policy_source import find_policy

from .lerobot_folders import ARM, SMOLVLM, edit

CONFIG, PRE, POST = "config.json", "policy_preprocessor.json", "policy_postprocessor.json"
NORMALIZER = "policy_preprocessor_step_3_normalizer_processor.safetensors"


@pytest.fixture
def act(folder: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of the trained ACT, to be spoiled."""
    return shutil.copytree(folder("act"), tmp_path / "act")


def refused(path: Path, says: str, error: type[Exception] = CheckpointError, **recipe: Any) -> None:
    """Both `vla check` and the loading refuse it."""
    asked = LeRobotRecipe(checkpoint=path, **recipe)
    for load in (lambda: check_policy(asked), lambda: load_policy(asked, ARM)):
        with pytest.raises(error, match=says):
            load()


def step(name: str, **more: Any) -> Callable[[Any], None]:
    def add(data: Any) -> None:
        data["steps"].append({"registry_name": name, "config": {}, **more})

    return add


@pytest.mark.parametrize(
    ("file", "change", "says"),
    [
        (PRE, lambda d: d["steps"].append({"class": "os.system", "config": {}}), "unknown step 'os.system'"),
        (PRE, lambda d: d["steps"][0].update({"class": "posix.system"}), "No other class is imported"),
        (POST, step("action_tokenizer_processor"), "unknown step 'action_tokenizer_processor'"),
        (PRE, step("normalizer_procesor"), "did you mean 'normalizer_processor'"),
        (PRE, lambda d: d["steps"][0]["config"].update(trust_remote_code=True), "trust_remote_code asks to run code"),
        (CONFIG, lambda d: d.update(trust_remote_code=True), "asks to run code from the hub"),
        (PRE, lambda d: d["steps"][3].update(state_file="../stats.safetensors"), "state_file is refused"),
        (PRE, lambda d: d["steps"][3].update(state_file="/etc/passwd"), "state_file is refused"),
        (PRE, lambda d: d["steps"][3].update(state_file="gone.safetensors"), "gone.safetensors is missing"),
        (PRE, lambda d: d.pop("steps"), "the field 'steps' is missing"),
        (CONFIG, lambda d: d.update(type="act2"), "unknown type of policy 'act2'; did you mean 'act'"),
        (CONFIG, lambda d: d.update(type="pi0_fast"), "does not run here: its tokenizer or model is code from the hub"),
        (CONFIG, lambda d: d.update(type="vqbet"), "does not run here: it reads the observations of its own queues"),
        (CONFIG, lambda d: d.update(use_peft=True), "adapters without their base model"),
        (CONFIG, lambda d: d.update(vision_backbone="vit"), "lerobot refuses it.*ResNet"),
        (CONFIG, lambda d: d.update(shape_of_things=3), "lerobot refuses it.*shape_of_things"),
        (CONFIG, lambda d: d["output_features"].pop("action"), "output_features has no 'action'"),
        (
            CONFIG,
            lambda d: d["input_features"].update({"observation.environment_state": {"type": "ENV", "shape": [4]}}),
            "type ENV, which no robot has",
        ),
        (
            CONFIG,
            lambda d: d["input_features"].update({"observation.depth": {"type": "VISUAL", "shape": [1, 64, 64]}}),
            "is not a feature that is read here",
        ),
    ],
)
def test_a_file_that_says_what_it_must_not(act: Path, file: str, change: Any, says: str, no_network: None) -> None:
    edit(act, file, change)
    refused(act, says)


@pytest.mark.parametrize(
    ("file", "says"),
    [
        (PRE, "cannot be read: No such file.*migrate_policy_normalization"),
        (POST, "policy_postprocessor.json cannot be read"),
        ("model.safetensors", "model.safetensors is missing"),
        (NORMALIZER, "normalizer_processor.safetensors is missing"),
    ],
)
def test_a_missing_file_is_named(act: Path, file: str, says: str) -> None:
    (act / file).unlink()
    refused(act, says)


def test_the_folder_above_is_told_where_the_policy_is(folder: Callable[[str], Path]) -> None:
    refused(folder("act").parent, "The policy is in .*pretrained_model")


@pytest.mark.parametrize("damage", [b"", b"\xff" * 100, b"{" * 100_000])
def test_damaged_files_are_told(act: Path, damage: bytes) -> None:
    for file in (CONFIG, PRE, "model.safetensors"):
        before = (act / file).read_bytes()
        (act / file).write_bytes(damage)
        refused(act, file.replace(".", r"\."))
        (act / file).write_bytes(before)


def test_every_tensor_is_audited(act: Path) -> None:
    tensors = load_file(act / "model.safetensors")
    name = "model.action_head.weight"
    spoiled = {
        "missing": {k: v for k, v in tensors.items() if k != name},
        "unexpected": {**tensors, "model.extra": tensors[name].clone()},
        "of another shape or type": {**tensors, name: tensors[name][:2].clone()},
    }
    for what, changed in spoiled.items():
        save_file(changed, act / "model.safetensors")
        refused(act, f"does not hold this policy's tensors: 1 {what}: model")
    save_file({**spoiled["missing"], "model.other": tensors[name]}, act / "model.safetensors")
    refused(act, "1 missing: model.action_head.weight; 1 unexpected: model.other")


def test_a_tensor_that_lerobot_would_leave_at_random_is_one_of_them(act: Path) -> None:
    """lerobot's default loads the same file without an error."""
    from .lerobot_folders import lerobots_own

    tensors = load_file(act / "model.safetensors")
    del tensors["model.action_head.weight"]
    save_file(tensors, act / "model.safetensors")
    from lerobot.policies.act.modeling_act import ACTPolicy

    ACTPolicy.from_pretrained(act)
    with pytest.raises(RuntimeError, match="action_head"):
        lerobots_own(act)
    refused(act, "1 missing: model.action_head.weight")


@pytest.mark.parametrize("name", ["observation.state.mean", "observation.images.front.std", "action.mean"])
def test_missing_statistics_are_told(act: Path, name: str) -> None:
    """lerobot would give the model raw numbers, or raise in the middle of an episode."""
    for file in act.glob("*normalizer_processor.safetensors"):
        save_file({k: v for k, v in load_file(file).items() if not k.startswith(name)}, file)
    feature, _, stat = name.rpartition(".")
    with pytest.raises(CheckpointError, match=f"has no {stat} of '{feature}'.*would not normalise"):
        load_policy(LeRobotRecipe(checkpoint=act), ARM)


def test_statistics_of_another_width_or_of_no_number_are_told(act: Path) -> None:
    stats = load_file(act / NORMALIZER)
    save_file({**stats, "observation.state.mean": stats["observation.state.mean"][:2].clone()}, act / NORMALIZER)
    with pytest.raises(CheckpointError, match=r"mean of 'observation.state' has 2 numbers, the feature 3"):
        load_policy(LeRobotRecipe(checkpoint=act), ARM)
    save_file({**stats, "observation.state.std": stats["observation.state.std"] * float("nan")}, act / NORMALIZER)
    with pytest.raises(CheckpointError, match=r"std of 'observation.state' is not finite"):
        load_policy(LeRobotRecipe(checkpoint=act), ARM)


def test_a_name_on_the_hub_needs_a_local_folder(
    folder: Callable[[str], Path], hub: dict[str, Path], tmp_path: Path, no_network: None
) -> None:
    missing = r"needs the model of 'HuggingFaceTB/SmolVLM2.*': it is not on this computer.*table \[hub\]"
    refused(folder("smolvla"), missing)
    refused(folder("smolvla"), f"{tmp_path / 'gone'} is no folder", hub={SMOLVLM: tmp_path / "gone"})
    with pytest.raises(CheckpointError, match="needs the tokenizer of 'google/paligemma-3b-pt-224'"):
        load_policy(LeRobotRecipe(checkpoint=folder("pi0")), ARM)
    coded = shutil.copytree(hub[SMOLVLM], tmp_path / "coded")
    edit(coded, "config.json", lambda d: d.update(auto_map={"AutoConfig": "evil.Config"}))
    refused(folder("smolvla"), "names code of its own", hub={SMOLVLM: coded})


def test_a_path_inside_a_file_is_looked_up_as_a_name(folder: Callable[[str], Path], tmp_path: Path) -> None:
    own = shutil.copytree(folder("smolvla"), tmp_path / "own")
    edit(own, CONFIG, lambda d: d.update(vlm_model_name=str(tmp_path)))
    refused(own, "it is not on this computer, and nothing is downloaded")


def test_a_policy_whose_chunks_lerobot_averages_needs_a_recipe(act: Path) -> None:
    edit(act, CONFIG, lambda d: d.update(temporal_ensemble_coeff=0.01, n_action_steps=1))
    refused(act, "--splice ensemble: write a recipe with `rows = 1`", RecipeError)
    policy = load_policy(LeRobotRecipe(checkpoint=act, rows=1), ARM)
    assert policy is not None


def test_a_folder_without_a_recipe_is_recognised_by_its_own_config(
    folder: Callable[[str], Path], tmp_path: Path
) -> None:
    assert find_policy(folder("act")).recipe == LeRobotRecipe(checkpoint=folder("act").resolve())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "openvla"}))
    assert isinstance(find_policy(tmp_path).recipe, OpenVLARecipe)


def test_a_server_needs_the_meaning_of_the_numbers(folder: Callable[[str], Path]) -> None:
    with pytest.raises(ContractError, match=r"a server must tell its clients. Copy meta/embodiment.json"):
        load_policy(LeRobotRecipe(checkpoint=folder("act")), None)
