"""The flow-matching head against lerobot's guidance, transformers' decoder and the definition, on random numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, LlamaConfig, LlamaModel

from vla_robot.core.errors import CheckpointError, ContractError
from vla_robot.core.messages import Observation
from vla_robot.core.normalise import QuantileStats
from vla_robot.core.ports.action_head import Plan
from vla_robot.policy.vla.heads.flow import GUIDANCE, PREFIX, Attention, FlowHead, Sampling, rotary
from vla_robot.policy.vla.heads.plans import begun_by, joined, plan_of
from vla_robot.policy.vla.heads.prompted import Prompted
from vla_robot.policy.vla.heads.rtc import guided, integrate, soft_mask
from vla_robot.policy.vla.sequence.ragged import RaggedSequence
from vla_robot.recipe.policy import FlowRecipe
from vla_robot.safety.splice import rtc_weights

K, D, LAYERS, HEADS, KV, HEAD_DIM, WIDTH = 6, 3, 2, 4, 2, 8, 16
SHAPE = Attention(LAYERS, HEADS, KV, HEAD_DIM, 10_000.0)
DELAYS = [(0, 0), (0, 4), (2, 2), (2, 5), (1, 6), (5, 6)]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def head(prefix: int = 0) -> FlowHead:
    torch.manual_seed(1)
    return FlowHead(SHAPE, WIDTH, 24, K, D, prefix).eval().requires_grad_(False)


def prompts(lengths: tuple[int, ...] = (7, 5)) -> Prompted:
    memory = [
        (drawn(len(lengths), KV, 7, HEAD_DIM, seed=2 + n), drawn(len(lengths), KV, 7, HEAD_DIM, seed=9 + n))
        for n in range(LAYERS)
    ]
    rows = RaggedSequence(torch.zeros(len(lengths), 7, WIDTH), torch.tensor(lengths))
    return Prompted(rows, lambda rows: rows.embeds, lambda rows: memory)


def lerobot_guidance(largest: float = 10.0) -> Any:
    rtc: Any = pytest.importorskip("lerobot.policies.rtc.modeling_rtc")
    configs: Any = pytest.importorskip("lerobot.configs")
    from lerobot.policies.rtc.configuration_rtc import RTCConfig

    schedule = configs.RTCAttentionSchedule.EXP
    return rtc.RTCProcessor(RTCConfig(prefix_attention_schedule=schedule, max_guidance_weight=largest))


@pytest.mark.parametrize(("committed", "planned"), DELAYS)
def test_the_soft_mask_is_lerobots_and_that_of_the_bridge(committed: int, planned: int) -> None:
    mine = soft_mask(torch.tensor([committed]), torch.tensor([planned]), K)[0]
    theirs = lerobot_guidance().get_prefix_weights(committed, planned, K)
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)
    np.testing.assert_allclose(mine[:planned], rtc_weights(committed, planned), atol=1e-6)


@pytest.mark.parametrize(("committed", "planned"), [pair for pair in DELAYS if pair[1]])
@pytest.mark.parametrize("time", [1.0, 0.9, 0.5, 0.1])
def test_a_guided_velocity_is_lerobots(committed: int, planned: int, time: float) -> None:
    matrix = drawn(D, D, seed=3)
    velocity = lambda x, at: torch.tanh(x @ matrix) + at  # noqa: E731 - named for the reader
    x, left_over = drawn(2, K, D, seed=4), drawn(2, planned, D, seed=5)
    plan = torch.nn.functional.pad(left_over, (0, 0, 0, K - planned))
    counts = (torch.full((2,), committed), torch.full((2,), planned))
    mine = guided(velocity, x, time, plan, soft_mask(*counts, K), 10.0)
    theirs = lerobot_guidance().denoise_step(x, left_over, committed, time, lambda x: velocity(x, time), planned)
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)


def test_a_whole_answer_is_lerobots_with_the_same_velocities() -> None:
    flow_matching: Any = pytest.importorskip("lerobot.policies.common.flow_matching")
    made, asked, seeds = head(), prompts(), np.array([3, 4])
    made.sampling = Sampling(5, GUIDANCE)
    plan = Plan(drawn(2, K, D, seed=6).clamp(-1, 1), torch.tensor([2, 2]), torch.tensor([5, 5]))
    mine = made.answer(asked, seeds, plan)
    noise = torch.cat([torch.randn((1, K, D), generator=torch.Generator().manual_seed(int(seed))) for seed in seeds])
    theirs = flow_matching.euler_integrate(
        lambda x, time: made.velocity(made._seen(asked), x, time[:, None].expand(-1, K)), noise, 5,
        rtc_processor=lerobot_guidance(), rtc_enabled=True, inference_delay=2, prev_chunk_left_over=plan.actions[:, :5],
        execution_horizon=5,
    )  # fmt: skip
    torch.testing.assert_close(mine, theirs.clamp(-1, 1), rtol=0, atol=1e-5)
    assert not torch.allclose(mine, made.answer(asked, seeds), atol=1e-3)


def test_the_papers_guidance_takes_the_models_jacobian() -> None:
    matrix, weights = drawn(D, D, seed=3), soft_mask(torch.tensor([1]), torch.tensor([4]), K)
    x, plan, time = drawn(1, K, D, seed=4), drawn(1, K, D, seed=5), 0.5
    velocity = lambda x, at: torch.tanh(x @ matrix)  # noqa: E731
    mine = guided(velocity, x, time, plan, weights, 10.0, jacobian=True)
    error = (plan - (x - time * velocity(x, time))) * weights[..., None]
    whole = torch.autograd.functional.jacobian(lambda x: x - time * velocity(x, time), x)  # (1, K, D, 1, K, D)
    correction = torch.einsum("bkd,bkdcle->cle", error, whole)
    torch.testing.assert_close(mine, velocity(x, time) - 2.0 * correction, rtol=0, atol=1e-5)


def test_the_expert_is_transformers_llama_behind_the_backbones_cache() -> None:
    made, asked = head(), prompts((7,))
    config = LlamaConfig(
        hidden_size=WIDTH, intermediate_size=24, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=KV, head_dim=HEAD_DIM, vocab_size=8, rms_norm_eps=1e-6,
    )  # fmt: skip
    llama = LlamaModel(config).eval()
    names = {"norm_attention": "input_layernorm.weight", "norm_mlp": "post_attention_layernorm.weight"}
    weights = {"norm.weight": made.norm}
    for name, p in made.layers.named_parameters():
        number, _, rest = name.partition(".")
        inside = "mlp" if rest.startswith(("gate", "up", "down")) else "self_attn"
        weights[f"layers.{number}.{names.get(rest, f'{inside}.{rest}')}"] = p
    llama.load_state_dict(weights, strict=False)
    seen: list[Tensor] = []
    made.layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    made.leave = torch.nn.Identity()  # type: ignore[assignment]
    with torch.no_grad():
        mine = made.velocity(made._seen(asked), drawn(1, K, D), torch.full((1, K), 0.3))
        cache = DynamicCache()
        for number, (keys, values) in enumerate(asked.memory(asked.rows)):
            cache.update(keys, values, number)
        everyone = torch.zeros(1, 1, K, 7 + K)  # added to the scores: nothing is hidden
        positions = torch.arange(7, 7 + K)[None]
        theirs = llama(inputs_embeds=seen[0], past_key_values=cache, attention_mask=everyone, position_ids=positions)
    torch.testing.assert_close(mine, theirs.last_hidden_state, rtol=0, atol=1e-5)


def test_the_loss_is_the_mean_squared_error_of_velocities_where_actions_are_noised() -> None:
    made, asked, seeds = head(prefix=3), prompts(), np.array([11, 12])
    actions = drawn(2, K, D, seed=7).clamp(-1, 1)
    errors: list[Tensor] = []
    for row, seed in enumerate(seeds):
        generator = torch.Generator().manual_seed(int(seed))
        noise = torch.randn((1, K, D), generator=generator)[0]
        t = float(torch.rand(1, generator=generator)) ** (2 / 3) * 0.999 + 0.001
        given = int(torch.randint(4, (1,), generator=generator))
        times = torch.tensor([0.0] * given + [t] * (K - given))[:, None]
        x = torch.stack([drawn(K, D)] * 2)
        x[row] = times * noise + (1 - times) * actions[row]
        velocity = made.velocity(made._seen(asked), x, torch.stack([times[:, 0]] * 2))[row]
        errors.append(((velocity - (noise - actions[row])) ** 2)[given:])
    noised = K - 3 / 2  # actions of a row on average: 0 to 3 are given
    wanted = torch.cat(errors).sum() / (2 * noised * D)
    torch.testing.assert_close(made.loss(asked, actions, seeds), wanted, rtol=1e-5, atol=1e-6)


def test_a_prefix_is_kept_and_what_follows_depends_on_it() -> None:
    made, asked, seeds = head(prefix=3), prompts(), np.array([3, 4])
    assert made.sampling.rtc == PREFIX
    plan = Plan(drawn(2, K, D, seed=6).clamp(-1, 1), torch.tensor([2, 0]), torch.tensor([4, 4]))
    said = made.answer(asked, seeds, plan)
    torch.testing.assert_close(said[0, :2], plan.actions[0, :2], rtol=0, atol=0)
    other = made.answer(asked, seeds, replace(plan, actions=-plan.actions))
    assert not torch.allclose(said[0, 2:], other[0, 2:], atol=1e-4)
    torch.testing.assert_close(said[1], made.answer(asked, seeds)[1], rtol=0, atol=1e-6)  # nothing was committed


def test_more_committed_actions_than_training_gave_are_continued_by_guidance() -> None:
    made, asked, seeds = head(prefix=2), prompts(), np.array([3, 4])
    plan = Plan(drawn(2, K, D, seed=6).clamp(-1, 1), torch.tensor([3, 2]), torch.tensor([4, 4]))
    said = made.answer(asked, seeds, plan)
    torch.testing.assert_close(said[1, :2], plan.actions[1, :2], rtol=0, atol=0)  # this row is within the prefix
    made.sample_as(FlowRecipe(rtc="guidance"))
    torch.testing.assert_close(said[0], made.answer(asked, seeds, plan)[0], rtol=0, atol=1e-6)
    assert not torch.allclose(said[1], made.answer(asked, seeds, plan)[1], atol=1e-4)


def test_euler_reaches_the_end_of_a_straight_flow_in_any_number_of_steps() -> None:
    noise, actions = drawn(1, K, D), drawn(1, K, D, seed=1)
    for steps in (1, 3, 10):
        torch.testing.assert_close(integrate(lambda x, t: noise - actions, noise, steps), actions)


def test_positions_are_rotated_as_transformers_rotates_them() -> None:
    config = LlamaConfig(hidden_size=32, num_attention_heads=4, head_dim=HEAD_DIM, num_hidden_layers=1)
    positions = torch.tensor([[3, 4, 90]])
    cos, sin = LlamaModel(config).rotary_emb(drawn(1, 3, 32), positions)
    mine = rotary(positions, HEAD_DIM, 10_000.0)
    torch.testing.assert_close(mine, (cos, sin), rtol=0, atol=1e-5)


def test_a_recipe_chooses_steps_and_real_time_chunking() -> None:
    made = head()
    made.sample_as(FlowRecipe(steps=3, rtc="none"))
    assert made.sampling.steps == 3 and not made.continues
    with pytest.raises(CheckpointError, match="trained without a prefix"):
        made.sample_as(FlowRecipe(rtc="prefix"))


STATS = QuantileStats(np.full(D, -2.0), np.full(D, 2.0), np.ones(D, bool))


def seen(committed: int | None, planned: int | None = None, dims: int = D) -> Observation:
    rows = [None if n is None else np.full((n, dims), 0.5 + n) for n in (committed, planned)]
    return Observation({}, np.zeros(1), "go", 1, 1, committed=rows[0], planned=rows[1])


def test_the_plan_of_an_observation_is_normalised_and_cut_to_the_chunk() -> None:
    made = head()
    assert plan_of(seen(None), STATS, made) is None
    rows, committed = plan_of(seen(2, 1), STATS, made) or pytest.fail("no plan")
    assert committed == 2
    np.testing.assert_allclose(rows, np.array([1.0, 1.0, 0.75])[:, None].repeat(D, axis=1), atol=1e-6)
    rows, committed = plan_of(seen(9, 3), STATS, made) or pytest.fail("no plan")
    assert (len(rows), committed) == (K - 1, K - 1)  # one action stays the policy's choice
    plans = joined([None, (rows, committed)], made, torch.device("cpu"))
    assert plans is not None and plans.committed.tolist() == [0, K - 1] and plans.planned.tolist() == [0, K - 1]
    begun = begun_by(seen(2, 1), np.zeros((K, D)), (rows[:3], 2))
    assert begun[:2].tolist() == [[2.5] * D] * 2 and not begun[2:].any()
    with pytest.raises(ContractError, match="another number of numbers than 3"):
        plan_of(seen(2, dims=D + 1), STATS, made)
