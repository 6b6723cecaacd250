"""OpenVLA-OFT against transformers' Llama with an explicit full mask, on small random weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import gelu, layer_norm
from transformers import LlamaConfig, LlamaForCausalLM

from vla_robot.core.embodiment import Dim, Embodiment
from vla_robot.core.errors import CheckpointError, ContractError, PolicyError, RecipeError
from vla_robot.core.ports import Policy
from vla_robot.policy.kinds import load_policy
from vla_robot.policy.openvla.network.parallel_decoding import ParallelGenerator
from vla_robot.policy.openvla.network.reason import Decoder
from vla_robot.policy.openvla.oft import OFTPolicy, load_oft
from vla_robot.policy.vla.heads.l1 import L1Head
from vla_robot.policy.vla.inputs.observations import Batch
from vla_robot.policy.vla.loading import Loading
from vla_robot.policy.vla.proprio import ProprioProjector
from vla_robot.recipe import parse, read
from vla_robot.recipe.policy import PolicyRecipe
from vla_robot.testing import toy_embodiment

from .tiny_policies import ARM, HEAD, LLM, OFT, PROPRIO, head_weights, observation, publish

TEXTS = ("lift the red cube", "open the door", "put the cube on the door", "go")


@pytest.fixture(scope="module")
def published(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish(tiny_folder, tmp_path_factory.mktemp("oft"))


@pytest.fixture
def copy(published: Path, tmp_path: Path) -> Path:
    """The folder again, to be damaged."""
    for file in published.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


@pytest.fixture(scope="module")
def oft(published: Path) -> OFTPolicy:
    return load_oft(published, OFT)


def batch_of(policy: OFTPolicy, texts: Sequence[str] = TEXTS) -> Batch:
    return policy.read([observation(text, seed) for seed, text in enumerate(texts)])


def expected_actions(policy: OFTPolicy, folder: Path, batch: Batch, row: int) -> Tensor:
    """One row by the definition, in plain torch and transformers: (K, D) normalised."""
    model = policy.model
    llama = model.language_model.model
    words = llama.embed_tokens(torch.from_numpy(batch.prompts[row].copy())[None])
    stop = llama.embed_tokens(torch.tensor([[2]]))
    patches = [model.projector(model.vision_backbone(batch.pixels[row, n][None, None])) for n in range(2)]
    p = {name.removeprefix("module."): t for name, t in torch.load(folder / PROPRIO, weights_only=True).items()}
    assert batch.state is not None
    state = gelu(batch.state[row] @ p["fc1.weight"].T + p["fc1.bias"]) @ p["fc2.weight"].T + p["fc2.bias"]
    count = OFT.chunk * OFT.action_dim
    nothing = torch.zeros(1, count, LLM)
    sequence = torch.cat([words[:, :1], *patches, state[None, None], words[:, 1:], nothing, stop], dim=1)
    everyone = torch.zeros(1, 1, sequence.shape[1], sequence.shape[1])  # added to the scores: nothing is hidden
    hidden = llama(inputs_embeds=sequence, attention_mask=everyone, use_cache=False).last_hidden_state[0]
    last_word = sequence.shape[1] - 1 - count - 1
    return head_by_hand(hidden[last_word : last_word + count].reshape(OFT.chunk, -1))


def head_by_hand(x: Tensor) -> Tensor:
    w = head_weights()

    def norm(x: Tensor, name: str) -> Tensor:
        return layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    x = linear(norm(x, "model.layer_norm1"), "model.fc1").clamp(min=0)
    for block in range(2):
        ffn = f"model.mlp_resnet_blocks.{block}.ffn"
        x = x + linear(norm(x, f"{ffn}.0"), f"{ffn}.1").clamp(min=0)
    return linear(norm(x, "model.layer_norm2"), "model.fc2")


def test_a_batch_of_different_prompts_equals_the_definition_row_by_row(oft: OFTPolicy, published: Path) -> None:
    batch = batch_of(oft)
    assert len({len(prompt) for prompt in batch.prompts}) > 1
    actions = oft.predict(batch)
    assert actions.shape == (4, 3, 7)
    for row in range(4):
        expected = expected_actions(oft, published, batch, row)
        np.testing.assert_allclose(actions[row], expected, atol=1e-5)


def test_each_row_equals_itself_alone(oft: OFTPolicy) -> None:
    together = oft.predict(batch_of(oft))
    for row, text in enumerate(TEXTS):
        alone = oft.predict(oft.read([observation(text, row)]))
        np.testing.assert_allclose(alone[0], together[row], atol=1e-5)


def test_a_chunk_comes_back_in_units(oft: OFTPolicy, published: Path) -> None:
    assert isinstance(oft, Policy)
    seen = observation(step=4)
    (chunk,) = oft.act([seen])
    block = json.loads((published / "dataset_statistics.json").read_text())["toy"]["action"]
    low, high, mask = (np.array(block[name]) for name in ("q01", "q99", "mask"))
    n = oft.predict(oft.read([seen]))[0]
    np.testing.assert_array_equal(chunk.actions, np.where(mask, 0.5 * (n + 1) * (high - low + 1e-8) + low, n))
    assert (chunk.step, chunk.stamp_ns) == (4, 15)
    assert set(chunk.stages_ms) == {"preprocess", "towers", "projector", "decode", "unnormalise"}


def test_each_row_may_have_its_own_statistics(copy: Path) -> None:
    statistics = json.loads((copy / "dataset_statistics.json").read_text())
    toy = statistics["toy"]
    wide = {**toy, "action": {**toy["action"], "q99": [2 * value for value in toy["action"]["q99"]]}}
    short = {**toy, "action": {name: values[:3] for name, values in toy["action"].items()}}
    (copy / "dataset_statistics.json").write_text(json.dumps({"toy": toy, "wide": wide, "short": short}))
    seen = [observation(seed=seed) for seed in range(2)]
    policy = load_oft(copy, OFT, Loading(statistics_key="toy"))
    together = policy.act(seen, ["wide", None])
    for one, key, chunk in zip(seen, ("wide", "toy"), together, strict=True):
        np.testing.assert_allclose(policy.act([one], [key])[0].actions, chunk.actions, atol=1e-4)
    assert not np.allclose(policy.act(seen)[0].actions, together[0].actions)
    with pytest.raises(ContractError, match="recipe says action_dim = 7, but the statistics have 3"):
        policy.act(seen, ["toy", "short"])


def test_bounds_take_the_smallest_and_largest_value(published: Path) -> None:
    policy = load_oft(published, replace(OFT, normalisation="bounds"))
    seen = observation()
    statistics = json.loads((published / "dataset_statistics.json").read_text())["toy"]
    low, high = (np.array(statistics["proprio"][name]) for name in ("min", "max"))
    batch = policy.read([seen])
    assert batch.state is not None
    np.testing.assert_allclose(batch.state[0], np.clip(2 * (seen.state - low) / (high - low + 1e-8) - 1, -1, 1), 1e-6)
    low, high, mask = (np.array(statistics["action"][name]) for name in ("min", "max", "mask"))
    n = policy.predict(batch)
    expected = np.where(mask, 0.5 * (n + 1) * (high - low + 1e-8) + low, n)
    np.testing.assert_array_equal(policy.act([seen])[0].actions, expected[0])


def test_lower_precision_still_acts(published: Path, oft: OFTPolicy) -> None:
    rough = load_oft(published, OFT, Loading(dtype="bfloat16")).act([observation()])[0].actions
    np.testing.assert_allclose(rough, oft.act([observation()])[0].actions, atol=0.5)


def small_llama() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40, hidden_size=LLM, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval().requires_grad_(False)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 12), min_size=1, max_size=5), st.integers(0, 2**16))
def test_padding_is_never_seen(lengths: list[int], seed: int) -> None:
    llama = small_llama()
    embeds = torch.randn(len(lengths), max(lengths), LLM, generator=torch.Generator().manual_seed(seed))
    hidden = Decoder(llama).bidirectional(embeds, torch.tensor(lengths))
    for row, length in enumerate(lengths):
        alone, full = embeds[row : row + 1, :length], torch.zeros(1, 1, length, length)
        expected = llama.model(inputs_embeds=alone, attention_mask=full, use_cache=False).last_hidden_state
        np.testing.assert_allclose(hidden[row : row + 1, :length], expected, atol=1e-5)


def test_every_token_sees_the_last_one() -> None:
    decoder = Decoder(small_llama())
    embeds = torch.randn(1, 6, LLM)
    changed = embeds.clone()
    changed[0, -1] += 1
    lengths = torch.tensor([6])
    difference = (decoder.bidirectional(embeds, lengths) - decoder.bidirectional(changed, lengths)).abs().amax(dim=2)
    assert (difference > 1e-4).all()


class Recorder:
    """Stands for the decoder: keeps what it is given and answers with each token's position."""

    def bidirectional(self, embeds: Tensor, lengths: Tensor) -> Tensor:
        self.embeds = embeds
        positions = torch.arange(embeds.shape[1], dtype=torch.float32)
        return positions[None, :, None].expand(len(embeds), -1, 1)


class Identity:
    """Stands for the head: the hidden states themselves are the actions."""

    def __call__(self, hidden: Tensor) -> Tensor:
        return hidden


def recorded(chunk: int = 2, action_dim: int = 3) -> tuple[Any, Recorder]:
    decoder: Any = Recorder()
    head: Any = Identity()
    return ParallelGenerator(decoder, head, chunk, action_dim, eos=2), decoder


def test_hidden_states_are_read_one_position_early() -> None:
    generator, _ = recorded()
    lengths = torch.tensor([4 + 7, 2 + 7])  # 4 and 2 prompt tokens, 6 placeholders, EOS
    actions = generator.actions(torch.ones(2, 11, 1), lengths)
    np.testing.assert_array_equal(actions[0], [[3, 4, 5], [6, 7, 8]])  # from the last word of the prompt
    np.testing.assert_array_equal(actions[1], [[1, 2, 3], [4, 5, 6]])


def test_placeholders_are_zero_and_everything_else_is_untouched() -> None:
    generator, decoder = recorded()
    embeds = torch.ones(2, 11, 1)
    generator.actions(embeds, torch.tensor([11, 9]))
    np.testing.assert_array_equal(decoder.embeds[0, :, 0], [1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 1])
    np.testing.assert_array_equal(decoder.embeds[1, :, 0], [1, 1, 0, 0, 0, 0, 0, 0, 1, 1, 1])
    assert (embeds == 1).all()


def test_a_prompt_is_completed_with_placeholders_and_the_end() -> None:
    generator, _ = recorded()
    completed = generator.complete(np.array([1, 5, 9]))
    assert completed[:3].tolist() == [1, 5, 9]
    assert (len(completed), completed[-1]) == (3 + 6 + 1, 2)


def test_the_heads_parameters_have_the_published_names() -> None:
    ours = {name: tuple(p.shape) for name, p in L1Head(LLM, 7).named_parameters()}
    assert ours == {name: tuple(t.shape) for name, t in head_weights().items()}


def test_the_published_sizes_come_out() -> None:
    with torch.device("meta"):
        head, projector = L1Head(4096, 7), ProprioProjector(8, 4096)
    millions = [sum(p.numel() for p in module.parameters()) / 1e6 for module in (head, projector)]
    assert [round(m) for m in millions] == [151, 17]


def test_a_sequence_longer_than_the_model_knows_is_told() -> None:
    with pytest.raises(ContractError, match="has 33 tokens, but the language model has 32 positions"):
        Decoder(small_llama()).bidirectional(torch.zeros(1, 33, LLM), torch.tensor([33]))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"instruction": "  "}, "the instruction is empty"),
        ({"state": np.array([np.nan, 0.0])}, "state holds numbers that are not finite"),
        ({"state": np.zeros(3)}, "reads 2 state dimensions, but the observation has 3"),
        ({"images": {"front": np.zeros((8, 8, 3), np.uint8)}}, "unknown camera 'wrist'"),
        ({"images": dict.fromkeys(("front", "wrist"), np.zeros((8, 8, 3)))}, "must be a uint8 array"),
    ],
)
def test_a_bad_observation_is_an_error_and_never_an_action(oft: OFTPolicy, change: Any, reason: str) -> None:
    with pytest.raises(ContractError, match=reason):
        oft.act([replace(observation(), **change)])


def test_actions_that_are_not_finite_never_leave_the_policy(oft: OFTPolicy) -> None:
    batch = batch_of(oft)
    with pytest.raises(PolicyError, match="actions are not finite"):
        oft.predict(replace(batch, pixels=torch.full_like(batch.pixels, torch.nan)))


def test_damaged_weights_fail_the_self_test(copy: Path) -> None:
    torch.save({name: torch.full_like(t, torch.nan) for name, t in head_weights().items()}, copy / HEAD)
    with pytest.raises(CheckpointError, match="self-test failed: the policy's actions are not finite"):
        load_oft(copy, OFT)


def test_a_model_that_ignores_its_image_does_not_load(copy: Path) -> None:
    torch.save({name: torch.zeros_like(t) for name, t in head_weights().items()}, copy / HEAD)
    with pytest.raises(CheckpointError, match="a black image and one of noise give the same answer"):
        load_oft(copy, OFT)


def test_component_files_without_a_distributed_runs_prefix_load_too(copy: Path, oft: OFTPolicy) -> None:
    torch.save(head_weights(), copy / HEAD)
    np.testing.assert_array_equal(load_oft(copy, OFT).predict(batch_of(oft)), oft.predict(batch_of(oft)))


def test_a_missing_or_doubled_component_is_told(copy: Path) -> None:
    (copy / "action_head--200_checkpoint.pt").write_bytes((copy / HEAD).read_bytes())
    with pytest.raises(CheckpointError, match=rf"must hold one action_head--<step>_checkpoint\.pt, found: {HEAD}, act"):
        load_oft(copy, OFT)
    for file in copy.glob("action_head--*"):
        file.unlink()
    with pytest.raises(CheckpointError, match=r"must hold one action_head--<step>_checkpoint\.pt, found: none"):
        load_oft(copy, OFT)


@pytest.mark.parametrize("keep", [0, 7, 1000])
def test_a_truncated_component_is_told(copy: Path, keep: int) -> None:
    (copy / HEAD).write_bytes((copy / HEAD).read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="is not a plain file of tensors: it is truncated"):
        load_oft(copy, OFT)


class Payload:
    """What an attacker would put into a .pt file."""

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return Path.touch, (Path("owned"),)


def test_a_component_that_would_run_code_is_refused_and_does_not_run(copy: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(copy)
    torch.save({"model": Payload()}, copy / HEAD)
    with pytest.raises(CheckpointError, match=r"loading it could run code, so it is refused \(UnpicklingError\)"):
        load_oft(copy, OFT)
    assert not (copy / "owned").exists()


@pytest.mark.parametrize("content", [[torch.zeros(1)], {"a": 1}, {"a": torch.zeros(1, dtype=torch.int64)}])
def test_a_component_that_is_no_state_dictionary_is_told(copy: Path, content: Any) -> None:
    torch.save(content, copy / HEAD)
    with pytest.raises(CheckpointError, match="expected names with floating-point tensors"):
        load_oft(copy, OFT)


def test_a_recipe_that_does_not_fit_the_files_is_told(published: Path) -> None:
    with pytest.raises(CheckpointError, match=r"do not fit the recipe's \[oft\].*\[7, 32\] \(expected \[6, 32\]\)"):
        load_oft(published, replace(OFT, action_dim=6))
    with pytest.raises(CheckpointError, match=r"do not fit the recipe's \[oft\].*\[32, 2\] \(expected \[32, 8\]\)"):
        load_oft(published, replace(OFT, proprio_dim=8))
    with pytest.raises(CheckpointError, match=r"the policy reads the arm's state: give \[oft\] proprio_dim"):
        load_oft(published, replace(OFT, proprio_dim=None))


def test_a_policy_without_state_or_second_camera_acts(copy: Path) -> None:
    (copy / PROPRIO).unlink()
    policy = load_oft(copy, replace(OFT, proprio_dim=None, cameras=("wrist",)))
    seen = observation()
    (chunk,) = policy.act([seen])
    (same,) = policy.act([replace(seen, images={"wrist": seen.images["wrist"]}, state=np.zeros(5))])
    np.testing.assert_array_equal(chunk.actions, same.actions)


def test_the_recipes_order_of_cameras_counts(published: Path, oft: OFTPolicy) -> None:
    swapped = load_oft(published, replace(OFT, cameras=("wrist", "front")))
    assert not np.allclose(swapped.act([observation()])[0].actions, oft.act([observation()])[0].actions)


@pytest.mark.parametrize(
    ("component", "reason"),
    [("noisy_action_projector", "only the L1 head is supported"), ("vision_backbone", r"FiLM\), which is not support")],
)
def test_other_variants_are_refused(copy: Path, component: str, reason: str) -> None:
    torch.save({}, copy / f"{component}--150_checkpoint.pt")
    with pytest.raises(CheckpointError, match=reason):
        load_oft(copy, OFT)


def recipe_table(**changes: Any) -> dict[str, Any]:
    table = {"chunk": 3, "action_dim": 7, "normalisation": "bounds_q99", "cameras": ["front", "wrist"]}
    return {"kind": "openvla_oft", "checkpoint": ".", "oft": {**table, "proprio_dim": 2, **changes}}


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        (recipe_table(normalisation="bounds_q98"), "did you mean 'bounds_q99'"),
        (recipe_table(chunk=0), "chunk must be at least 1, got 0"),
        (recipe_table(cameras=[]), "cameras must be different names, at least one"),
        ({"kind": "openvla_oft", "checkpoint": "."}, "oft: this key is missing; it must be a table"),
        ({**recipe_table(), "kind": "openvla"}, "oft: this key is for kind 'openvla_oft', not for 'openvla'"),
    ],
)
def test_a_wrong_recipe_is_told(table: dict[str, Any], reason: str) -> None:
    with pytest.raises(RecipeError, match=reason):
        parse(PolicyRecipe, table, Path("policies/mine.toml"))


def toy_arm(cameras: tuple[str, ...] = ("front", "wrist"), actions: int = 7) -> Embodiment:
    dims = [Dim(f"a{i}", "m", -1.0, 1.0) for i in range(actions)]
    return toy_embodiment(axes=dims, gripper=None, state=ARM.state, cameras=cameras, height=32, width=32)


def test_a_recipe_loads_by_its_kind_and_must_fit_the_world(published: Path, tmp_path: Path, oft: OFTPolicy) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        f'kind = "openvla_oft"\ncheckpoint = "{published}"\n[oft]\nchunk = 3\naction_dim = 7\n'
        'normalisation = "bounds_q99"\ncameras = ["front", "wrist"]\nproprio_dim = 2\n'
    )
    recipe = read(PolicyRecipe, path)
    policy = load_policy(recipe, toy_arm())
    np.testing.assert_array_equal(policy.act([observation()])[0].actions, oft.act([observation()])[0].actions)
    with pytest.raises(ContractError, match="unknown camera 'wrist'; did you mean 'wrist_left'"):
        load_policy(recipe, toy_arm(cameras=("front", "wrist_left")))
    with pytest.raises(ContractError, match="gives 7 numbers per action, but 'toy' takes 3: a0, a1, a2"):
        load_policy(recipe, toy_arm(actions=3))
