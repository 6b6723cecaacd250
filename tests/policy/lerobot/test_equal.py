"""Our port's actions are lerobot's own on the same numbers: alone, in a batch, and by real-time chunking."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vla_robot.core.messages import Observation
from vla_robot.policy.kinds import check_policy, load_policy
from vla_robot.policy.lerobot.policy import LeRobotPolicy
from vla_robot.policy.vla.heads.noise import row_seed
from vla_robot.recipe.policy import LeRobotRecipe

from . import lerobot_folders as write
from .lerobot_folders import ARM, CHUNK, PALIGEMMA, SMOLVLM, batch_of, lerobots_own, observation

KINDS = ("act", "diffusion", "smolvla", "pi0", "pi05")
RTC = ("smolvla", "pi0", "pi05")
SEED = 5
Load = Callable[..., LeRobotPolicy]
Folder = Callable[[str], Path]


@pytest.fixture
def own(folder: Folder, hub: dict[str, Path]) -> Callable[..., tuple[Any, Any, Any]]:
    """`own(kind)`: model and processors as lerobot itself loads them."""

    def make(kind: str, **config: Any) -> tuple[Any, Any, Any]:
        name = {"smolvla": SMOLVLM, "pi0": PALIGEMMA, "pi05": PALIGEMMA}.get(kind)
        overrides = {} if name is None else {"tokenizer_processor": {"tokenizer_name": str(hub[name])}}
        if kind == "smolvla":
            config["vlm_model_name"] = str(hub[SMOLVLM])
        return lerobots_own(folder(kind), overrides, **config)

    return make


def lerobots_actions(own: tuple[Any, Any, Any], seen: Observation, **options: Any) -> np.ndarray:
    """lerobot's chunk for one observation, (K, D) in units, with torch's own random numbers."""
    model, before, after = own
    batch = batch_of(seen)
    if model.config.type == "diffusion":  # the first observation of an episode is repeated
        batch = {k: v if k == "task" else torch.stack([v, v], dim=1) for k, v in batch.items()}
    torch.manual_seed(row_seed(SEED, seen.step))
    with torch.no_grad():
        return after(model.predict_action_chunk(before(batch), **options))[0].double().numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_the_actions_are_lerobots_own(kind: str, load: Load, own: Any, no_network: None) -> None:
    policy, theirs = load(kind), own(kind)
    policy.reset(SEED)
    for step in range(3):
        (chunk,) = policy.act([observation(step)])
        np.testing.assert_allclose(chunk.actions, lerobots_actions(theirs, observation(step)), rtol=0, atol=1e-6)
        assert (chunk.step, chunk.stamp_ns, chunk.conditioned) == (step, 1000 + step, False)


@pytest.mark.parametrize("kind", ["act", "diffusion", "smolvla"])
def test_mixed_precision_is_used_where_the_folder_says_so_as_by_lerobot_eval(
    kind: str, folder: Folder, load: Load, own: Any, tmp_path: Path
) -> None:
    shutil.copytree(folder(kind), tmp_path / kind)
    write.edit(tmp_path / kind, "config.json", lambda config: config.update(use_amp=True))
    mixed, whole, theirs = load(kind, checkpoint=tmp_path / kind), load(kind), own(kind)
    for policy in (mixed, whole):
        policy.reset(SEED)
    (chunk,), (exact,) = mixed.act([observation(0)]), whole.act([observation(0)])
    with torch.autocast("cpu"):
        expected = lerobots_actions(theirs, observation(0))
    np.testing.assert_allclose(chunk.actions, expected, rtol=0, atol=1e-6)
    assert np.abs(chunk.actions - exact.actions).max() > 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_in_a_batch_is_the_row_alone(kind: str, load: Load) -> None:
    policy = load(kind)
    seen = [observation(0), observation(1, instruction="put it down"), observation(2)]
    policy.reset(SEED)
    alone = [policy.act([o])[0].actions for o in seen]
    for order in ([0, 1, 2], [2, 0], [1, 1]):
        for row, chunk in zip(order, policy.act([seen[k] for k in order]), strict=True):
            np.testing.assert_allclose(chunk.actions, alone[row], rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_repeats_the_answers_and_frames_state_and_words_change_them(kind: str, load: Load) -> None:
    policy, seen = load(kind), observation(0)

    def answer(observation: Observation, seed: int = SEED) -> np.ndarray:
        policy.reset(seed)
        return policy.act([observation])[0].actions

    first = answer(seen)
    np.testing.assert_array_equal(answer(seen), first)
    black = {**seen.images, "wrist": np.zeros_like(seen.images["wrist"])}
    assert np.abs(answer(replace(seen, images=black)) - first).max() > 1e-7
    assert np.abs(answer(replace(seen, state=-seen.state)) - first).max() > 1e-7
    is_random, reads_words = kind != "act", kind in RTC
    assert (np.abs(answer(seen, SEED + 1) - first).max() > 1e-3) == is_random
    assert (np.abs(answer(replace(seen, instruction="put it down")) - first).max() > 1e-9) == reads_words


def normalised(kind: str, rows: np.ndarray) -> torch.Tensor:
    """Actions in the policy's units, by the statistics with which the folders are written."""
    stats = write.statistics()["action"]
    rows_t = torch.from_numpy(rows).float()
    if kind == "pi05":
        return (rows_t - stats["q01"]) / (stats["q99"] - stats["q01"]) * 2 - 1
    return (rows_t - stats["mean"]) / (stats["std"] + 1e-8)


@pytest.mark.parametrize("kind", RTC)
@pytest.mark.parametrize("delay", [1, 3, CHUNK - 1])
def test_real_time_chunking_is_lerobots_own(kind: str, delay: int, load: Load, own: Any) -> None:
    from lerobot.policies.rtc.configuration_rtc import RTCConfig

    policy, seen = load(kind), observation(4, committed=delay)
    policy.reset(SEED)
    (chunk,) = policy.act([seen])
    theirs = own(kind, rtc_config=RTCConfig(enabled=True))
    assert seen.committed is not None
    left_over = normalised(kind, seen.committed)
    options = {"inference_delay": delay, "prev_chunk_left_over": left_over, "execution_horizon": delay}
    guided = lerobots_actions(theirs, seen, **options)
    np.testing.assert_allclose(chunk.actions[delay:], guided[delay:], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(chunk.actions[:delay], seen.committed)
    assert chunk.conditioned
    # The guidance is at work: it pulls the committed rows, and the others follow.
    free = lerobots_actions(theirs, seen)
    assert np.abs(guided[:delay] - seen.committed).mean() < np.abs(free[:delay] - seen.committed).mean() / 2
    assert np.abs(guided[delay:] - free[delay:]).max() > 1e-7


def test_rows_with_other_delays_keep_their_answers_in_one_request(load: Load) -> None:
    policy = load("pi0")
    policy.reset(SEED)
    seen = [observation(0), observation(1, committed=2), observation(2, committed=0), observation(3, committed=2)]
    alone = [policy.act([o])[0] for o in seen]
    for one, chunk in zip(alone, policy.act(seen), strict=True):
        np.testing.assert_allclose(chunk.actions, one.actions, rtol=0, atol=1e-6)
        assert (chunk.step, chunk.conditioned) == (one.step, one.conditioned)
    assert [chunk.conditioned for chunk in alone] == [False, True, False, True]


def test_a_policy_without_real_time_chunking_leaves_it_to_the_bridge(load: Load) -> None:
    policy = load("act")
    (free,), (asked,) = policy.act([observation(0)]), policy.act([observation(0, committed=2)])
    np.testing.assert_array_equal(free.actions, asked.actions)
    assert not asked.conditioned


def test_only_the_actions_that_lerobot_executes_are_given_unless_a_horizon_is(
    folder: Folder, tmp_path: Path, load: Load
) -> None:
    import shutil

    short = shutil.copytree(folder("act"), tmp_path / "short")
    write.edit(short, "config.json", lambda config: config.update(n_action_steps=3))
    whole = load("act").act([observation(0)])[0].actions
    given = load("act", checkpoint=short).act([observation(0)])[0].actions
    np.testing.assert_array_equal(given, whole[:3])
    np.testing.assert_array_equal(load("act", checkpoint=short, rows=2).act([observation(0)])[0].actions, whole)


def test_a_smolvla_whose_backbone_lerobot_would_load_has_its_precision(
    folder: Folder, hub: dict[str, Path], tmp_path: Path
) -> None:
    """lerobot loads the backbone from the hub in bfloat16, and the file's tensors into it."""
    config = write.smolvla_config(hub[SMOLVLM], load_vlm_weights=True)
    saved = write.save(config, tmp_path / "smolvla", hub[SMOLVLM], SMOLVLM)
    overrides = {"tokenizer_processor": {"tokenizer_name": str(hub[SMOLVLM])}}
    theirs = lerobots_own(saved, overrides, vlm_model_name=str(hub[SMOLVLM]))
    policy = load_policy(LeRobotRecipe(checkpoint=saved, hub=hub), ARM)
    policy.reset(SEED)
    (chunk,) = policy.act([observation(0)])
    np.testing.assert_allclose(chunk.actions, lerobots_actions(theirs, observation(0)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_is_checked_without_weights_and_without_a_network(
    kind: str, folder: Folder, hub: dict[str, Path], no_network: None
) -> None:
    check_policy(LeRobotRecipe(checkpoint=folder(kind), hub=hub))


def test_an_empty_request_and_a_statistics_key_are_refused(load: Load) -> None:
    policy = load("act")
    with pytest.raises(Exception, match="no observation"):
        policy.act([])
    with pytest.raises(Exception, match="one set of statistics"):
        policy.act([observation(0)], ["bridge_orig"])


def test_committed_actions_of_another_width_are_refused(load: Load) -> None:
    policy = load("pi0")
    wide = dataclasses.replace(observation(0), committed=np.zeros((2, 4)))
    with pytest.raises(Exception, match="committed to actions"):
        policy.act([wide])
