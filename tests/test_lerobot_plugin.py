"""plugins/lerobot_policy_vla_robot: our policies and worlds in lerobot's own tools."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("lerobot")

from lerobot.configs import FeatureType, PolicyFeature, PreTrainedConfig, parser
from lerobot.configs.eval import EvalPipelineConfig
from lerobot.configs.train import TrainPipelineConfig
from lerobot.envs import EnvConfig, make_env_pre_post_processors
from lerobot.envs.utils import preprocess_observation
from lerobot.policies import make_pre_post_processors
from lerobot.policies.factory import get_policy_class, make_policy
from lerobot.robots import RobotConfig, so_follower  # noqa: F401 (registers the arm of the page)
from lerobot.rollout import RolloutConfig
from lerobot_policy_vla_robot import VlaRobotConfig, VlaRobotEnvConfig, environment, modeling_vla_robot, saved_folder
from lerobot_policy_vla_robot.features import EMBODIMENT_KEY
from lerobot_policy_vla_robot.modeling_vla_robot import VlaRobotPolicy
from lerobot_policy_vla_robot.processor_vla_robot import make_vla_robot_pre_post_processors
from lerobot_policy_vla_robot.saved_folder import Loaded, load, write_policy

from vla_robot.cli.build import build_policy
from vla_robot.core.embodiment import Dim, Embodiment
from vla_robot.core.errors import CheckpointError, ContractError, PolicyError, RecipeError, VlaError
from vla_robot.core.messages import Observation
from vla_robot.core.ports import Policy
from vla_robot.loop.control_loop import run_episode
from vla_robot.policy.execution_horizon import ExecutionHorizon
from vla_robot.recipe.env import EnvRecipe
from vla_robot.recipe.env_source import find_env
from vla_robot.recipe.policy import OpenVLARecipe
from vla_robot.recipe.policy_source import PolicySource, find_policy
from vla_robot.safety.limits import RangeGuard
from vla_robot.testing.embodiments import toy_embodiment
from vla_robot.testing.policies import FunctionPolicy
from vla_robot.testing.worlds import ToyWorld

Tool = Callable[..., str]
"""(module, arguments) -> what it printed."""

ARM = toy_embodiment(cameras=("front", "wrist"), height=6, width=8)
FRAMES = np.random.default_rng(0).integers(0, 256, (2, 2, 6, 8, 3), np.uint8)  # camera, row


def batch(rows: int = 2, **more: Any) -> dict[str, Any]:
    """A batch as lerobot makes it of an environment's observations."""
    pixels = {"front": FRAMES[0, :rows], "wrist": FRAMES[1, :rows]}
    state = np.array([[0.125], [0.25]])[:rows]
    seen: dict[str, Any] = {"pixels": pixels, "agent_pos": state}
    return preprocess_observation(seen) | {"task": ["go", "stay"][:rows], **more}


def wrapped(policy: Policy, arm: Embodiment = ARM, **options: Any) -> VlaRobotPolicy:
    return VlaRobotPolicy(
        VlaRobotConfig(**{"units": "vla_robot", **options}), loaded=Loaded(find_policy("hold"), policy, arm)
    )


def test_lerobot_finds_its_type_by_the_names_of_its_modules() -> None:
    assert get_policy_class("vla_robot") is VlaRobotPolicy
    assert EnvConfig.get_choice_class("vla_robot") is VlaRobotEnvConfig
    before, after = make_pre_post_processors(VlaRobotConfig())
    assert [type(step).__name__ for step in before.steps] == [
        "RenameObservationsProcessorStep",
        "AddBatchDimensionProcessorStep",
        "DeviceProcessorStep",
    ]
    assert len(after.steps) == 1


def test_a_policy_sees_the_very_pixels_and_numbers_and_each_rows_instruction() -> None:
    policy = FunctionPolicy(lambda seen: seen.state[0])
    actions = wrapped(policy).select_action(batch())
    assert actions.dtype == torch.float64
    np.testing.assert_array_equal(actions, [[0.125, 1.0], [0.25, 1.0]])
    for row, seen in enumerate(policy.saw):
        np.testing.assert_array_equal(seen.images["front"], FRAMES[0, row])
        np.testing.assert_array_equal(seen.images["wrist"], FRAMES[1, row])
    assert [seen.instruction for seen in policy.saw] == ["go", "stay"]


@pytest.mark.parametrize(("used", "asked_at"), [(None, [0, 3]), (1, [0, 1, 2, 3]), (2, [0, 2])])
def test_the_rows_of_a_chunk_are_used_before_the_next_one_is_requested(used: int | None, asked_at: list[int]) -> None:
    policy = FunctionPolicy(lambda seen: np.array([[seen.step + k, 1.0] for k in range(3)]))
    inside = wrapped(policy, n_action_steps=used)
    inside.reset()
    taken = [inside.select_action(batch(1))[0, 0].item() for _ in range(4)]
    assert taken == [0, 1, 2, 3]
    assert [seen.step for seen in policy.saw] == asked_at
    inside.reset()
    assert inside.select_action(batch(1))[0, 0].item() == 0
    assert policy.seeds == [0, 1]


def test_the_horizon_of_a_recipe_holds_and_lerobots_option_overrides_it() -> None:
    policy = FunctionPolicy(lambda seen: np.array([[seen.step + k, 1.0] for k in range(3)]))
    for used, asked_at in ((None, [0, 2]), (1, [0, 1, 2])):
        policy.saw.clear()
        inside = wrapped(ExecutionHorizon(policy, 2), n_action_steps=used)
        assert [inside.select_action(batch(1))[0, 0].item() for _ in range(3)] == [0, 1, 2]
        assert [seen.step for seen in policy.saw] == asked_at
    with pytest.raises(PolicyError, match=r"rows is 4, but an answer of the policy has 3 action"):
        wrapped(policy, n_action_steps=4).select_action(batch(1))
    with pytest.raises(ValueError, match="n_action_steps is 0"):
        VlaRobotConfig(n_action_steps=0)


def test_a_chunk_is_whole_and_has_a_row_for_each_observation() -> None:
    policy = FunctionPolicy(lambda seen: np.full((3, 2), seen.state[0]))
    chunk = wrapped(policy).predict_action_chunk(batch())
    assert chunk.shape == (2, 3, 2)
    np.testing.assert_array_equal(chunk[:, 2, 0], [0.125, 0.25])


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"observation.images.wrist": None}, ContractError, "lacks 'observation.images.wrist'"),
        ({"observation.state": torch.zeros(2, 3)}, ContractError, "has 3 numbers, but 1 are needed"),
        ({"observation.state": torch.zeros(1)}, ContractError, "2 dimensions are needed"),
        ({"observation.images.front": torch.zeros(2, 6, 8, 3)}, ContractError, r"\(B, 3, H, W\) is needed"),
        ({"observation.images.front": torch.full((2, 3, 6, 8), 2.0)}, PolicyError, r"frames in \[0, 1\] are needed"),
        ({"task": ["one"]}, ContractError, "2 observations and 1 instructions"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused(change: dict[str, Any], error: type[VlaError], says: str) -> None:
    with pytest.raises(error, match=says):
        wrapped(FunctionPolicy()).select_action(batch() | change)


def test_features_that_do_not_fit_are_all_listed() -> None:
    config = VlaRobotConfig(
        input_features={"observation.images.front": PolicyFeature(FeatureType.VISUAL, (3, 6, 8))},
        output_features={"action": PolicyFeature(FeatureType.ACTION, (6,))},
        action_feature_names=["shoulder_pan.pos", "gripper.pos"],
    )
    with pytest.raises(ContractError) as caught:
        VlaRobotPolicy(config, loaded=Loaded(find_policy("hold"), FunctionPolicy(), ARM))
    for part in ("'observation.images.wrist' is missing", "(6,) numbers there", "shoulder_pan.pos, gripper.pos there"):
        assert part in str(caught.value)


def test_a_world_that_says_what_it_is_gives_the_state_by_name_and_is_refused_if_it_does_not_fit() -> None:
    more = replace(ARM, state=(Dim("y", "m", -1, 1), *ARM.state))
    policy = FunctionPolicy()
    inside = wrapped(policy)
    inside.select_action(batch() | {EMBODIMENT_KEY: more, "observation.state": torch.tensor([[9.0, 0.5], [9.0, 0.75]])})
    assert [seen.state.tolist() for seen in policy.saw] == [[0.5], [0.75]]
    with pytest.raises(ContractError, match=r"trained at 10 Hz, the world runs at 20 Hz"):
        wrapped(policy).select_action(batch() | {EMBODIMENT_KEY: replace(ARM, rate_hz=20.0)})


JOINTS = toy_embodiment(
    axes=[Dim("shoulder", "rad", -1.0, 1.0), Dim("elbow", "rad", -2.0, 2.0)],
    kind="joint_position",
    state=[Dim("shoulder", "rad", -1.0, 1.0), Dim("elbow", "rad", -2.0, 2.0), Dim("gripper", "1", 0.0, 1.0)],
    cameras=(),
)


def test_what_is_no_world_of_ours_moves_only_in_units_that_are_named() -> None:
    policy = FunctionPolicy(lambda seen: seen.state / 2)
    degrees = {"observation.state": torch.tensor([[90.0, -45.0, 50.0]]), "task": ["go"]}
    with pytest.raises(ContractError, match=r"shoulder \[rad\], elbow \[rad\], gripper \[1\], in this order"):
        wrapped(policy, JOINTS, units=None).select_action(degrees)
    assert policy.saw == []
    actions = wrapped(policy, JOINTS, units="degrees").select_action(degrees)
    np.testing.assert_allclose(policy.saw[0].state, [np.pi / 2, -np.pi / 4, 0.5])
    np.testing.assert_allclose(actions, [[45.0, -22.5, 25.0]])
    with pytest.raises(ContractError, match=r"is for joint positions, but the policy gives dx \[m\], gripper \[1\]"):
        wrapped(policy, units="degrees")
    with pytest.raises(ContractError, match="unknown units 'degree'; did you mean 'degrees'"):
        wrapped(policy, JOINTS, units="degree")


def test_lerobot_cannot_train_it_and_says_who_can() -> None:
    inside = wrapped(FunctionPolicy())
    for call in (lambda: inside.forward(batch()), inside.get_optim_params, inside.config.get_optimizer_preset):
        with pytest.raises(NotImplementedError, match="vla finetune"):
            call()


def saved(folder: Path, name: str, arm: Embodiment | None) -> Path:
    """A policy's folder with its processors, as `vla export` writes it."""
    config = VlaRobotConfig()
    folder.mkdir(parents=True)
    write_policy(folder, load(find_policy(name), arm), config)
    for processor in make_vla_robot_pre_post_processors(config):
        processor.save_pretrained(folder)
    return folder


def reloaded(folder: Path, **options: Any) -> VlaRobotPolicy:
    """Load a folder as lerobot-rollout does."""
    config = PreTrainedConfig.from_pretrained(folder)
    for name, value in options.items():
        setattr(config, name, value)
    return VlaRobotPolicy.from_pretrained(folder, config=config)


def test_a_policy_that_is_saved_and_loaded_and_saved_and_moved_gives_equal_actions(tmp_path: Path) -> None:
    folder = saved(tmp_path / "one", "random", ARM)
    reloaded(folder).save_pretrained(tmp_path / "two")
    shutil.rmtree(folder)
    (tmp_path / "two").rename(tmp_path / "moved")
    direct = build_policy(find_policy("random"), None, ARM)
    again = reloaded(tmp_path / "moved", seed=7, units="vla_robot")
    again.reset()
    direct.reset(7)
    seen = Observation({}, np.zeros(1), "", 0, 0)
    wanted = [chunk.actions[0] for chunk in direct.act([seen, seen])]
    np.testing.assert_array_equal(again.select_action(batch()), wanted)
    assert again.config.action_feature_names == ["dx", "gripper"]


@pytest.mark.slow
def test_a_policy_with_weights_gives_the_actions_that_it_gives_here(tmp_path: Path) -> None:
    folder = saved(tmp_path / "nano", "openvla_nano", None)
    config = json.loads((folder / "config.json").read_text())
    assert (config["type"], config["policy"]) == ("vla_robot", None)
    inside = reloaded(folder, units="vla_robot")
    before, after = make_pre_post_processors(inside.config, pretrained_path=str(folder))
    rng = np.random.default_rng(3)
    frames = {name: rng.integers(0, 256, (2, 224, 224, 3), np.uint8) for name in ("front", "wrist")}
    states = rng.uniform(-0.5, 0.5, (2, 7)).astype(np.float32).astype(np.float64)  # lerobot passes on 32 bits
    task = "lift the red cube"
    raw: dict[str, Any] = {"pixels": frames, "agent_pos": states}
    actions = after(inside.select_action(before(preprocess_observation(raw) | {"task": [task] * 2})))
    here = build_policy(find_policy("openvla_nano"), None, inside.embodiment)
    rows = [Observation({n: images[k] for n, images in frames.items()}, states[k], task, 0, 0) for k in range(2)]
    np.testing.assert_array_equal(actions, [chunk.actions[0] for chunk in here.act(rows)])
    assert (folder / "policy" / "model.safetensors").stat().st_size > 1_000_000


def test_a_name_on_the_hub_is_downloaded_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, asked = saved(tmp_path / "hub", "hold", ARM), list[tuple[str, dict[str, Any]]]()

    def snapshot(name: str, **options: Any) -> str:
        asked.append((name, options))
        return str(folder)

    monkeypatch.setattr(modeling_vla_robot, "snapshot_download", snapshot)
    loaded = VlaRobotPolicy.from_pretrained("someone/hold", revision="abc", local_files_only=True)
    assert loaded.embodiment == ARM
    assert asked == [("someone/hold", {"revision": "abc", "local_files_only": True})]


def test_what_a_folder_says_is_not_trusted(tmp_path: Path) -> None:
    folder = saved(tmp_path / "folder", "hold", ARM)
    recipe, config = folder / "policy" / "recipe.toml", folder / "config.json"
    recipe.write_text('kind = "remote"\naddress = "tcp://192.0.2.1:5580"\n')
    with pytest.raises(CheckpointError, match=r"names the server tcp://192\.0\.2\.1:5580"):
        reloaded(folder)
    recipe.write_text('kind = "openvla"\ncheckpoint = "../../elsewhere"\n')
    with pytest.raises(CheckpointError, match="names a place outside of it: checkpoint"):
        reloaded(folder)
    recipe.unlink()
    with pytest.raises(CheckpointError, match=r"recipe.toml is missing. `vla export lerobot POLICY FOLDER`"):
        reloaded(folder)
    config.write_text(json.dumps(json.loads(config.read_text()) | {"policy": "tcp://192.0.2.1:5580"}))
    with pytest.raises(ContractError, match=r"holds its policy, but the policy 'tcp.*' is named, too"):
        reloaded(folder)


def test_a_damaged_embodiment_is_named(tmp_path: Path) -> None:
    folder = saved(tmp_path / "folder", "hold", ARM)
    (folder / "embodiment.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"embodiment.json is damaged"):
        reloaded(folder)


@pytest.mark.parametrize(
    ("name", "env", "says"),
    [
        (None, None, "no policy is named"),
        ("hold", None, "does not say which arm it drives"),
        ("expert", "lift", "reads the simulator's state"),
        ("openpi_libero", None, "does not say which arm it drives"),
    ],
)
def test_a_policy_that_cannot_be_had_by_name_says_what_is_missing(name: str | None, env: str | None, says: str) -> None:
    with pytest.raises(VlaError, match=says), no_worlds():
        VlaRobotPolicy(VlaRobotConfig(policy=name, env=env))


@dataclass
class Trained(FunctionPolicy):
    """A policy with weights that says its arm."""

    embodiment: Embodiment = ARM
    history_steps: int = 0


def test_a_recipes_mirror_holds_and_a_policy_of_several_observations_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy = Trained()
    monkeypatch.setattr(saved_folder, "load_policy", lambda recipe, arm: policy)
    source = PolicySource(OpenVLARecipe(checkpoint=Path("."), mirror=True, rows=1), Path("."))
    loaded = load(source, None)
    VlaRobotPolicy(VlaRobotConfig(units="vla_robot"), loaded=loaded).select_action(batch())
    np.testing.assert_array_equal(policy.saw[0].images["front"], FRAMES[0, 0, :, ::-1])
    policy.history_steps = 1
    with pytest.raises(RecipeError, match="reads 2 observations"):
        load(source, None)


def test_a_servers_policy_is_not_exported(tmp_path: Path) -> None:
    for name in ("tcp://127.0.0.1:5580", "openpi_libero"):
        with pytest.raises(RecipeError, match="a policy of a server"):
            saved_folder.write_folder(tmp_path, find_policy(name))


ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "lerobot.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^    (lerobot-.*)$", PAGE, re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_lerobots_own_parser_takes_the_commands_of_the_page(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(tmp_path / "made", "random", JOINTS)
    tool, *arguments = shlex.split(re.sub(r"--policy\.path=\S+", f"--policy.path={folder}", command))
    configs = {
        "lerobot-eval": EvalPipelineConfig,
        "lerobot-train": TrainPipelineConfig,
        "lerobot-rollout": RolloutConfig,
    }

    def take(config: object) -> object:
        return config

    take.__annotations__["config"] = configs[tool]
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", [tool, *arguments])
    wrapped_take: Any = parser.wrap()(take)
    config = wrapped_take()
    assert isinstance(config, configs[tool])
    if tool == "lerobot-rollout":
        assert (config.policy.type, config.policy.units) == ("vla_robot", "degrees")
        assert isinstance(config.robot, RobotConfig.get_choice_class("so101_follower"))
    elif "--config_path" in command:
        assert config.policy.type in ("act", "diffusion")
        suffix = {"data/lift_noisy": "", "data/colour_noisy": "_colour"}[str(config.dataset.root)]
        assert str(config.output_dir) == f"data/{config.policy.type}{suffix}"
    else:
        assert (config.env.type, config.env.task) == ("vla_robot", "lift")


def test_the_page_has_a_command_of_each_tool() -> None:
    assert {command.split()[0] for command in COMMANDS} == {"lerobot-eval", "lerobot-train", "lerobot-rollout"}


@contextlib.contextmanager
def no_worlds() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saved_folder, "embodiment_of_world", lambda env: ARM)
        yield


@pytest.fixture
def worlds(monkeypatch: pytest.MonkeyPatch) -> list[ToyWorld]:
    """The worlds that environments opened: toys in this process, which end at x = 0.3 or at step 8."""
    opened: list[ToyWorld] = []

    @contextlib.contextmanager
    def open_world(env: EnvRecipe) -> Iterator[ToyWorld]:
        world = ToyWorld(embodiment=ARM, goal=0.3, horizon=8, start=lambda seed: 0.05 * (seed % 4))
        opened.append(world)
        yield world
        world.close()

    monkeypatch.setattr(environment, "open_world", open_world)
    return opened


def test_an_environment_has_the_features_of_its_world(worlds: list[ToyWorld], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saved_folder, "embodiment_of_world", lambda env: ARM)
    config = VlaRobotEnvConfig(task="lift")
    vector: Any = config.create_envs(2)["vla_robot"][0]
    assert (config.fps, config.embodiment) == (10, ARM)
    assert make_policy(VlaRobotConfig(policy="random", env="lift"), env_cfg=config).config.output_features == {
        "action": PolicyFeature(FeatureType.ACTION, (2,))
    }
    assert vector.call("_max_episode_steps") == (100, 100) and vector.call("task_description") == ("go right",) * 2
    vector.close()
    assert [world.closed for world in worlds] == [True, True]


def lerobot_outcomes(policy: VlaRobotPolicy, seeds: Sequence[int], count: int) -> list[bool]:
    """The successes that lerobot's own evaluation counts."""
    from lerobot.scripts.lerobot_eval import eval_policy

    config = VlaRobotEnvConfig(task="lift")
    vector = config.create_envs(count)["vla_robot"][0]
    env_before, env_after = make_env_pre_post_processors(config, policy.config)
    before, after = make_pre_post_processors(policy.config)
    info = eval_policy(vector, policy, env_before, env_after, before, after, len(seeds), start_seed=seeds[0])
    vector.close()
    return [bool(episode["success"]) for episode in info["per_episode"]]


@pytest.mark.parametrize("count", [1, 3])
def test_lerobots_evaluation_counts_the_successes_of_our_loop(worlds: list[ToyWorld], count: int) -> None:
    def decide(seen: Observation) -> float:
        return 0.03 if seen.step % 2 else 0.04  # reaches 0.3 in 8 steps from 0.05 on

    seeds = range(100, 106)
    ours = []
    for seed in seeds:
        with environment.open_world(find_env("lift").recipe) as world:
            ours.append(run_episode(world, FunctionPolicy(decide), seed, guard=RangeGuard(ARM.action)).outcome)
    worlds.clear()
    assert lerobot_outcomes(wrapped(FunctionPolicy(decide)), seeds, count) == [o == "success" for o in ours]
    assert set(ours) == {"success", "timeout"}
    assert sorted(seed for world in worlds for seed in world.seeds) == list(seeds)  # and no episode besides


def test_an_action_is_cut_to_the_action_space_and_nan_moves_nothing(worlds: list[ToyWorld]) -> None:
    env = environment.WorldEnv("lift")
    env.reset(seed=0)
    _, reward, terminated, _, info = env.step(np.array([9.0, 0.5]))
    assert worlds[0].actions[0].tolist() == [0.05, 0.5]
    assert (reward, terminated, info) == (0.0, False, {"is_success": False})
    with pytest.raises(PolicyError):
        env.step(np.array([np.nan, 0.5]))
    assert len(worlds[0].actions) == 1
    assert env.render().shape == (6, 16, 3)
    env.close()
    env.close()


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip installed the distribution, and the example with its world "point"."""
    folder, root = tmp_path_factory.mktemp("lerobot_plugin"), Path(__file__).parents[1]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    for source in ("plugins/lerobot_policy_vla_robot", "examples/plugin"):
        copied = shutil.copytree(root / source, folder / Path(source).name)
        subprocess.run([*pip, "--target", str(folder / "site"), str(copied)], check=True)
    return folder / "site"


@pytest.fixture
def tool(site: Path, repository: Path, tmp_path: Path) -> Tool:
    """Run a module in a folder of its own, with the two distributions installed."""

    def run(module: str, *arguments: str) -> str:
        paths = os.pathsep.join((str(site), str(repository)))
        environment = os.environ | {"PYTHONPATH": paths, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
        command = [sys.executable, "-m", module, *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return done.stdout + done.stderr

    return run


@pytest.mark.slow
def test_lerobot_eval_and_vla_eval_count_the_same_successes(tool: Tool, tmp_path: Path) -> None:
    told = tool("vla_robot.cli.main", "export", "lerobot", "random", "made", "--env", "point")
    assert "made, a policy of lerobot's for 'point'" in told and "lerobot-eval --policy.path=made" in told
    world = ("--env.type=vla_robot", "--env.task=point")
    episodes = ("--eval.n_episodes=6", "--eval.batch_size=1", "--seed=100", "--policy.seed=100")
    tool("lerobot.scripts.lerobot_eval", "--policy.path=made", *world, *episodes, "--output_dir=theirs")
    theirs = json.loads((tmp_path / "theirs" / "eval_info.json").read_text())["per_task"][0]["metrics"]["successes"]
    options = ("--episodes", "6", "--seed", "100", "--videos", "none", "--workers", "1", "--json", "ours.json")
    tool("vla_robot.cli.main", "eval", "--env", "point", "--policy", "random", "--out", "ours", *options)
    trials = json.loads((tmp_path / "ours.json").read_text())["episodes"]
    assert theirs == [trial["outcome"] == "success" for trial in trials]
    assert set(theirs) == {True, False}


TOY_ARM = """
from dataclasses import dataclass
from pathlib import Path

from lerobot.robots import Robot, RobotConfig

NAMES = ("shoulder.pos", "elbow.pos", "gripper.pos")


@RobotConfig.register_subclass("toy_arm")
@dataclass
class ToyArmConfig(RobotConfig):
    sent: str = ""


class ToyArm(Robot):
    config_class, name = ToyArmConfig, "toy_arm"

    def __init__(self, config):
        super().__init__(config)
        self.config, self.pose, self.is_open = config, {name: 10.0 for name in NAMES}, False

    observation_features = action_features = property(lambda self: {name: float for name in NAMES})
    is_connected = property(lambda self: self.is_open)
    is_calibrated = True
    cameras = {}

    def connect(self, calibrate=True): self.is_open = True
    def calibrate(self): pass
    def configure(self): pass
    def get_observation(self): return dict(self.pose)
    def disconnect(self): self.is_open = False

    def send_action(self, action):
        with Path(self.config.sent).open("a") as file:
            print(*(action[name] for name in NAMES), file=file)
        self.pose = dict(action)
        return action
"""
"""A distribution with an arm of lerobot's that has no motors, and writes what it is sent."""


@pytest.mark.slow
def test_lerobot_rollout_drives_an_arm_of_lerobots_in_its_units(tool: Tool, site: Path, tmp_path: Path) -> None:
    (site / "lerobot_robot_toy.py").write_text(TOY_ARM)
    (site / "lerobot_robot_toy-1.0.dist-info").mkdir()
    metadata = "Metadata-Version: 2.1\nName: lerobot_robot_toy\nVersion: 1.0\n"
    (site / "lerobot_robot_toy-1.0.dist-info" / "METADATA").write_text(metadata)
    saved(tmp_path / "made", "random", JOINTS)
    robot = ("--robot.type=toy_arm", "--robot.id=toy", f"--robot.sent={tmp_path / 'sent'}", "--play_sounds=false")
    options = ("--policy.units=degrees", "--fps=10", "--duration=1", "--return_to_initial_position=false")
    tool("lerobot.scripts.lerobot_rollout", "--policy.path=made", *robot, *options, "--task=go")
    sent = np.loadtxt(tmp_path / "sent")
    assert len(sent) >= 1
    direct = build_policy(find_policy("random"), None, JOINTS)
    direct.reset(0)
    seen = Observation({}, np.zeros(3), "", 0, 0)
    wanted = [direct.act([seen])[0].actions[0] * [180 / np.pi, 180 / np.pi, 100] for _ in sent]
    np.testing.assert_allclose(sent, wanted, rtol=1e-6)
