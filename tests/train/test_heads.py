"""Policies with an action head are trained by `vla finetune`, for every family, and their folders act."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import l1_loss

from vla_robot.core.errors import CheckpointError, ContractError, RecipeError
from vla_robot.core.messages import Observation
from vla_robot.policy.families import NEW_MODELS, family_of
from vla_robot.policy.kinds import check_policy, load_policy
from vla_robot.policy.openvla.oft import OFTPolicy, load_oft
from vla_robot.policy.vla.heads.policy import HeadPolicy
from vla_robot.policy.vla.heads.sizes import head_of
from vla_robot.policy.vla.json_files import read_json
from vla_robot.policy.vla.loading import Loading
from vla_robot.recipe.finetune import CodecRecipe, DemosFinetuneRecipe, HeadRecipe
from vla_robot.recipe.policy import FlowRecipe, OFTRecipe, OpenVLAOFTRecipe
from vla_robot.recipe.policy_source import find_policy
from vla_robot.train.finetune import Progress, finetune, open_run
from vla_robot.train.parallel.ddp import Ranks

CHUNK, DIM = 3, 2
CAUSAL = ("gemma4",)
"""Families whose full-attention layers are causal whatever is asked."""
NO_FLOW = ("gemma4", "gemma4_unified")
"""Families whose layers differ in their keys."""
HEADS = {
    "l1": HeadRecipe(),
    "flow": HeadRecipe("flow", width=32, ff_dim=48),
    "prefix": HeadRecipe("flow", width=32, ff_dim=48, prefix=2),
}


def quiet(*_: object) -> None:
    pass


def seen(light: float, text: str = "go to the light") -> Observation:
    return Observation({"front": np.full((28, 28, 3), round(255 * light), np.uint8)}, np.zeros(1), text, 1, 1)


@pytest.fixture(scope="module")
def new(recipe: DemosFinetuneRecipe) -> Callable[..., DemosFinetuneRecipe]:
    """The recipe of a short run for a family and a head."""

    def make(family: str, head: str = "l1", **more: Any) -> DemosFinetuneRecipe:
        size = 28 if family in ("openvla", "minivla", "paligemma") else 56
        tiny = replace(recipe.architecture, family=family, image_size=size, tower_depth=3, max_positions=256)
        chosen: dict[str, Any] = {"chunk": CHUNK, "head": HEADS[head], "steps": 3, "ema": 0.0, **more}
        return replace(recipe, architecture=tiny, **chosen)

    return make


@dataclass(frozen=True)
class Run:
    """A short run: the trained folder, and the metrics of each step."""

    policy: Path
    told: list[dict[str, float]]


@pytest.fixture(scope="module")
def learned(new: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Run]:
    """Family and head -> a short run, made once, whose folder no test changes."""

    @cache
    def run(family: str, head: str) -> Run:
        told: list[dict[str, float]] = []
        recipe = new(family, head, steps=30, learning_rate=3e-3)
        out = tmp_path_factory.mktemp("run")
        done = finetune(recipe, out, lambda p: told.append(dict(p.metrics)) if p.phase == "steps" else None)
        return Run(done.policy, told)

    return run


@pytest.fixture
def trained(learned: Callable[[str, str], Run]) -> Callable[[str, str], Path]:
    """Family and head -> the folder of that run."""
    return lambda family, head: learned(family, head).policy


def built(folder: Path) -> Any:
    recipe = find_policy(folder).recipe
    check_policy(recipe)
    return load_policy(recipe, None)


QUICK = [("openvla", "l1"), ("qwen2_vl", "l1"), ("paligemma", "flow"), ("paligemma", "prefix")]
OTHERS = [
    *((name, "l1") for name in NEW_MODELS if name not in CAUSAL),
    *((name, "flow") for name in NEW_MODELS if name not in NO_FLOW),
]
OF_FAMILIES = [*QUICK, *(pytest.param(*each, marks=pytest.mark.slow) for each in OTHERS if each not in QUICK)]


@pytest.mark.parametrize(("family", "head"), OF_FAMILIES)
def test_a_new_policy_of_every_family_learns_and_its_folder_acts(
    learned: Callable[[str, str], Run], family: str, head: str
) -> None:
    run = learned(family, head)
    told, losses = run.told, [each["loss"] for each in run.told]
    assert np.mean(losses[-5:]) < 0.85 * np.mean(losses[:3])  # 0.81 with Qwen2.5-VL
    assert {"held_out_loss", "held_out_l1"} <= told[-1].keys() and "token_accuracy" not in told[-1]
    policy = built(run.policy)
    chunks = policy.act([seen(0.1), seen(0.9, "go")])
    assert all(chunk.actions.shape == (CHUNK, DIM) and np.isfinite(chunk.actions).all() for chunk in chunks)


def test_causal_layers_take_no_l1_head(new: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r'causal, .* which the head "l1" needs'):
        finetune(new("gemma4"), tmp_path, quiet)


def test_layers_of_several_kinds_take_no_flow_head(new: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="keys of one shape and one kind of rotary positions"):
        finetune(new("gemma4", "flow"), tmp_path, quiet)


def _parameters(folder: Path) -> dict[str, Tensor]:
    return dict(family_of(folder).load(folder).model.named_parameters())


@pytest.mark.parametrize(("family", "head"), [("openvla", "l1"), ("paligemma", "l1"), ("paligemma", "prefix")])
def test_a_run_resumes_as_if_it_had_not_stopped_and_its_folder_is_its_weights(
    new: Any, tmp_path: Path, family: str, head: str
) -> None:
    recipe = new(family, head, steps=5)
    finetune(recipe, tmp_path / "whole", quiet)
    steps = iter(range(100))
    finetune(recipe, tmp_path / "halves", quiet, should_stop=lambda: next(steps) == 2)
    trainer, _ = open_run(recipe, tmp_path / "halves", Ranks())
    trainer.train(quiet, lambda: False)
    learned = dict(trainer.model.named_parameters())
    folder = _parameters(tmp_path / "whole" / "final")
    assert learned.keys() == folder.keys() and any(name.startswith("action_head.") for name in folder)
    assert all(torch.equal(learned[name], folder[name]) for name in folder)


@torch.no_grad()
def _whole_row(model: Any, pixels: Tensor, ids: Tensor, end: int, state: Tensor) -> Tensor:
    """One row of OpenVLA-OFT by the definition, in plain transformers: (K * D, hidden) states."""
    llama = model.language_model.model
    words = llama.embed_tokens(ids[None])
    patches = model.projector(model.vision_backbone(pixels[None]))
    nothing = torch.zeros(1, CHUNK * DIM, words.shape[-1])
    stop = llama.embed_tokens(torch.tensor([[end]]))
    parts = [words[:, :1], patches, model.proprio_projector(state[None]), words[:, 1:], nothing, stop]
    sequence = torch.cat(parts, dim=1)
    everyone = torch.zeros(1, 1, sequence.shape[1], sequence.shape[1])  # added to the scores: nothing is hidden
    hidden = llama(inputs_embeds=sequence, attention_mask=everyone, use_cache=False).last_hidden_state[0]
    last = sequence.shape[1] - 1 - CHUNK * DIM - 1
    return hidden[last : last + CHUNK * DIM]


def test_the_l1_loss_of_openvla_is_that_of_the_definition(new: Any, tmp_path: Path) -> None:
    """Rows one by one through transformers' Llama with no key hidden, and torch's own L1 loss."""
    trainer, prepared = open_run(new("openvla"), tmp_path, Ranks())
    batch, model = prepared.data.batch(0), trainer.model
    assert model.action_head is not None
    assert batch.state is not None and batch.actions is not None
    answers: list[Tensor] = []
    for row in range(len(batch.pixels)):
        (end,) = torch.nonzero(batch.labels[row] >= 0).flatten().tolist()  # the only label is the end token
        hidden = _whole_row(
            model, batch.pixels[row], batch.input_ids[row, :end], int(batch.labels[row, end]), batch.state[row]
        )
        answers.append(model.action_head(hidden.reshape(1, CHUNK, -1))[0])
    wanted = l1_loss(torch.stack(answers), batch.actions)
    assert batch.actions.shape[1:] == (CHUNK, DIM)
    loss = model(batch.pixels, batch.input_ids, batch.labels, batch.state, 0.0, batch.actions, batch.seeds).loss
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-6)


def test_an_answer_of_one_pass_is_seen_by_its_own_tokens_and_not_by_a_causal_prompt(trained: Any) -> None:
    """Qwen's prompt does not change with the answer behind it; OpenVLA-OFT's does."""
    for family, sees in (("qwen2_vl", False), ("openvla", True)):
        policy: Any = family_of(trained(family, "l1")).load(trained(family, "l1"))
        model = policy.model
        batch = policy.read([seen(0.5)])
        batch = replace(batch, prompts=[np.append(p, policy.tokenizer.eos) for p in batch.prompts])
        states: list[Tensor] = []

        def hidden(rows: Any, model: Any = model, states: list[Tensor] = states) -> Tensor:
            states.append(model.hidden(rows))
            return states[-1]

        with torch.no_grad():
            rows = model.prompt(batch)
            prompts = replace(model.prompted(rows), hidden=hidden)
            model.action_head.regress(prompts)
            plain = model.hidden(rows)
        before = int(rows.lengths[0]) - 1
        assert torch.allclose(states[0][0, :before], plain[0, :before], atol=1e-5) is not sees


def test_a_trained_openvla_is_an_oft_folder_for_the_oft_engine(trained: Any, tmp_path: Path) -> None:
    folder = trained("openvla", "l1")
    components = {path.name for path in folder.glob("*.pt")}
    assert components == {"action_head--latest_checkpoint.pt", "proprio_projector--latest_checkpoint.pt"}
    names = load_file(folder / "model.safetensors").keys()
    assert not [name for name in names if name.startswith(("action_head", "proprio_projector"))]
    recipe = find_policy(folder).recipe
    assert isinstance(recipe, OpenVLAOFTRecipe) and recipe.oft.clip
    oft = load_policy(recipe, None)
    assert isinstance(oft, OFTPolicy)
    general: Any = family_of(folder).load(folder)
    assert isinstance(general, HeadPolicy)
    rows = [seen(0.2), seen(0.7, "go to the dark")]
    for ours, theirs in zip(general.act(rows), oft.act(rows), strict=True):
        np.testing.assert_allclose(ours.actions, theirs.actions, atol=1e-5)
    alike = load_oft(as_published(folder, tmp_path / "published"), recipe.oft, Loading(statistics_key="light"))
    for ours, theirs in zip(oft.act(rows), alike.act(rows), strict=True):
        np.testing.assert_array_equal(ours.actions, theirs.actions)


@pytest.mark.parametrize(
    "other", [{"chunk": 4}, {"action_dim": 3}, {"cameras": ("front", "wrist")}, {"proprio_dim": 2}]
)
def test_sizes_other_than_those_of_the_training_are_refused(trained: Any, other: dict[str, Any]) -> None:
    folder = trained("openvla", "l1")
    right = OFTRecipe(CHUNK, DIM, "bounds_q99", ("front",), 1)
    load_oft(folder, right, Loading(statistics_key="light"))
    with pytest.raises(CheckpointError, match=r"was .* in training"):
        load_oft(folder, replace(right, **other), Loading(statistics_key="light"))


@pytest.mark.parametrize("family", ["openvla", "qwen2_vl"])
def test_statistics_and_data_of_another_dimension_are_refused(trained: Any, family: str) -> None:
    folder = trained(family, "l1")
    policy: Any = family_of(folder).load(folder, Loading(statistics_key="light"))
    wide = {
        name: [*values, values[0]] for name, values in policy.statistics["light"]["action"].items() if name != "std"
    }
    policy.statistics["wide"] = {**policy.statistics["light"], "action": wide}
    with pytest.raises(ContractError, match="head gives 2 numbers per action, but the statistics have 3"):
        policy.act([seen(0.5)], ["wide"])
    rows = policy.model.prompted(policy.model.prompt(policy.read([seen(0.5)])))
    with pytest.raises(ContractError, match="answers 3 actions of 2 numbers, but the data have 4 of 2"):
        policy.head.loss(rows, torch.zeros(1, 4, 2), np.zeros(1, np.int64))


@pytest.mark.parametrize("family", ["openvla", "qwen2_vl"])
@pytest.mark.parametrize("lora_rank", [0, 2])
def test_a_policy_of_tokens_gets_a_head(new: Any, tmp_path: Path, family: str, lora_rank: int) -> None:
    plain = finetune(replace(new(family), head=None), tmp_path / "a", quiet)
    recipe = new(family, policy=plain.policy, lora_rank=lora_rank, chunk=2)
    finished = finetune(recipe, tmp_path / "b", quiet)
    assert built(finished.policy).act([seen(0.4)])[0].actions.shape == (2, DIM)
    before, after = _parameters(tmp_path / "b" / "start"), _parameters(finished.policy)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name for name in before if name.startswith("action_head.")} <= changed
    again = finetune(replace(recipe, policy=finished.policy, head=None, lora_rank=0), tmp_path / "c", quiet)
    assert built(again.policy).act([seen(0.4)])[0].actions.shape == (2, DIM)
    with pytest.raises(RecipeError, match="has an action head already"):
        finetune(replace(recipe, policy=finished.policy), tmp_path / "d", quiet)


def test_a_flow_policy_answers_by_its_seed_and_in_as_many_steps_as_its_recipe_says(trained: Any) -> None:
    source = find_policy(trained("paligemma", "flow"))
    policy: Any = load_policy(source.recipe, None)
    one: Any = load_policy(replace(source.recipe, flow=FlowRecipe(steps=1)), None)
    assert (policy.head.sampling.steps, one.head.sampling.steps) == (10, 1)
    first = policy.act([seen(0.5)])[0].actions
    assert np.array_equal(first, policy.act([seen(0.5)])[0].actions)
    assert not np.array_equal(first, one.act([seen(0.5)])[0].actions)
    policy.reset(7)
    assert not np.array_equal(first, policy.act([seen(0.5)])[0].actions)


@pytest.mark.parametrize("head", ["flow", "prefix"])
@pytest.mark.parametrize("jacobian", [False, True])
def test_an_answer_continues_the_plan_of_the_arm(trained: Any, head: str, jacobian: bool) -> None:
    recipe = find_policy(trained("paligemma", head)).recipe
    policy: Any = load_policy(replace(recipe, flow=FlowRecipe(jacobian=jacobian)), None)
    committed = np.full((2, DIM), 0.4)
    waits, moves = seen(0.5), replace(seen(0.5), committed=committed, planned=np.full((1, DIM), 0.3))
    alone, begun = policy.act([waits, moves])
    assert (alone.conditioned, begun.conditioned) == (False, True)
    np.testing.assert_array_equal(begun.actions[:2], committed)
    np.testing.assert_allclose(alone.actions, policy.act([waits])[0].actions, atol=1e-5)
    with pytest.raises(ContractError, match="another number of numbers"):
        policy.act([replace(waits, committed=np.zeros((1, DIM + 1)))])


def test_a_table_flow_is_for_a_flow_head_alone(trained: Any) -> None:
    for folder, has in ((trained("qwen2_vl", "l1"), 'has the head "l1"'), (trained("openvla", "flow"), None)):
        recipe: Any = replace(find_policy(folder).recipe, flow=FlowRecipe(steps=2))
        if has is None:
            assert load_policy(recipe, None).head.sampling.steps == 2  # type: ignore[attr-defined]
        else:
            for use in (check_policy, lambda recipe: load_policy(recipe, None)):
                with pytest.raises(CheckpointError, match=f"for a flow-matching head, and the folder {has}"):
                    use(recipe)
    with pytest.raises(CheckpointError, match='has the head "flow"; load it with kind = "openvla"'):
        load_oft(
            trained("openvla", "flow"),
            OFTRecipe(CHUNK, DIM, "bounds_q99", ("front",), 1),
            Loading(statistics_key="light"),
        )


def test_keys_of_a_flow_head_are_refused_for_another(new: Any) -> None:
    with pytest.raises(RecipeError, match='of kind = "flow"'):
        HeadRecipe(prefix=1)
    with pytest.raises(RecipeError, match=r"prefix is 3, and must be less than chunk, which is 3"):
        replace(new("paligemma", "flow"), head=HeadRecipe("flow", prefix=3))


def as_published(folder: Path, copy: Path) -> Path:
    """A trained folder as upstream publishes one: its config.json states sizes of the towers alone."""
    shutil.copytree(folder, copy)
    config = read_json(folder / "config.json")
    overrides = {"tower_overrides": config["vla_robot"]["tower_overrides"]}
    (copy / "config.json").write_text(json.dumps({**config, "vla_robot": overrides}))
    return copy


def test_the_head_of_a_published_folder_is_trained_further(new: Any, trained: Any, tmp_path: Path) -> None:
    published = as_published(trained("openvla", "l1"), tmp_path / "published")
    finished = finetune(new("openvla", policy=published, steps=1), tmp_path / "run", quiet)
    before, start = _parameters(trained("openvla", "l1")), _parameters(tmp_path / "run" / "start")
    assert all(torch.equal(before[name], start[name]) for name in before) and before.keys() == start.keys()
    assert isinstance(built(finished.policy), OFTPolicy)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"kind": "l2", "dimension": 2}, "unknown head 'l2'"),
        ({"kind": "l1"}, "dimension is None"),
        ({"kind": "l1", "dimension": 0}, "dimension is 0"),
        ({"kind": "flow", "dimension": 2, "width": 10**9, "ff_dim": 8}, "width is 1000000000"),
        ({"kind": "flow", "dimension": 2, "width": 9, "ff_dim": 8, "prefix": 0}, "width is 9"),
        ({"kind": "flow", "dimension": 2, "width": 8, "ff_dim": 8, "prefix": -1}, "prefix is -1"),
        ([1], "head must be an object"),
    ],
)
def test_an_impossible_head_of_a_config_is_refused(table: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        head_of("config.json", {"head": table})


def test_tokens_and_a_head_exclude_each_other(new: Any) -> None:
    with pytest.raises(RecipeError, match=r"\[codec\] says actions in tokens and \[head\] gives them as numbers"):
        new("openvla", codec=CodecRecipe())


def test_progress_says_no_tokens(new: Any, tmp_path: Path) -> None:
    from vla_robot.cli.finetune.finetune import _facts

    metrics = finetune(new("openvla"), tmp_path, quiet).metrics
    assert "tokens" not in _facts(Progress("steps", 3, 3, metrics)) and "L1" in _facts(Progress("steps", 3, 3, metrics))
