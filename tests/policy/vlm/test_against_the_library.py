"""Each family's policy against transformers: its image processor, `generate`, loss and loader on the same folder."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import LogitsProcessorList

from benchmarks.models.plain_vlm import OnlyRows
from vla_robot.core.normalise import normalise
from vla_robot.policy.families import family_of
from vla_robot.policy.vla.loading import Loading
from vla_robot.policy.vla.model import IGNORE
from vla_robot.recipe.finetune import DemosFinetuneRecipe
from vla_robot.train.batches.frames import answers_of, labelled
from vla_robot.train.lora import adapt

from .conftest import SHARP, TOKENS, Sample
from .tiny_vlms import observation

ROWS = [observation(0), observation(1), observation(2)]


def test_a_ragged_batch_says_the_librarys_tokens(sample: Sample) -> None:
    policy = sample.policy()
    tokens = policy.generate(policy.read(ROWS), TOKENS)
    for row, seen in zip(tokens, ROWS, strict=True):
        expected, _ = sample.generate(policy, seen)
        assert row.tolist() == expected


def test_first_logits_are_the_librarys_alone_and_in_a_batch(sample: Sample) -> None:
    policy = sample.policy()
    with torch.inference_mode():
        together = policy._first_logits(policy.read(ROWS))
        for row, seen in zip(together, ROWS, strict=True):
            _, expected = sample.generate(policy, seen)
            alone = policy._first_logits(policy.read([seen]))[0]
            # SHARP enlarges rounding, too: within 1e-5 of the logits without it.
            torch.testing.assert_close(row / SHARP, expected / SHARP, atol=1e-5, rtol=0)
            torch.testing.assert_close(alone / SHARP, row / SHARP, atol=1e-5, rtol=0)


def test_the_loss_is_the_librarys(sample: Sample) -> None:
    policy, model = sample.policy(), sample.policy().model
    rng = np.random.default_rng(0)
    answers = answers_of(rng.uniform(-1, 1, (len(ROWS), 1, 7)), policy.codec, policy.tokenizer)
    batch = policy.read(ROWS)
    ids, labels = labelled(batch.prompts, answers, model.config.pad_token_id)
    with torch.no_grad():
        ours = model(batch.pixels, torch.from_numpy(ids), torch.from_numpy(labels), None).loss
        theirs: list[float] = []
        for seen, answer in zip(ROWS, answers, strict=True):
            inputs = sample.inputs(policy, seen, answer)
            wanted = torch.full_like(inputs["input_ids"], IGNORE)
            wanted[0, -len(answer) :] = torch.from_numpy(answer)
            theirs.append(float(sample.library(**inputs, labels=wanted).loss))
    assert float(ours) == pytest.approx(float(np.mean(theirs)), abs=1e-5, rel=1e-6)


def test_every_tensor_is_the_librarys_bit_for_bit(sample: Sample) -> None:
    ours = sample.policy().model.vlm.state_dict()
    expected = sample.library.state_dict()
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], expected[name]) for name in expected)


def test_actions_are_the_tokens_in_units(sample: Sample) -> None:
    policy = sample.policy()
    chunks = policy.act(ROWS)
    tokens = policy.generate(policy.read(ROWS), TOKENS)
    for chunk, row in zip(chunks, tokens, strict=True):
        expected = policy.codec.decode(row, 7)[0]
        np.testing.assert_allclose(normalise(chunk.actions[0], policy.action_stats()), expected, atol=1e-6)
        assert {"preprocess", "towers", "projector", "prefill", "decode"} <= set(chunk.stages_ms)


def test_answers_in_words_are_the_librarys(sample: Sample) -> None:
    policy, question, longest = sample.policy(), "which cube is left?", 6
    config, words = policy.model.config, policy.tokenizer
    allowed = np.arange(config.num_words)
    if config.codec.reserved:
        allowed = np.setdiff1d(allowed, config.codec.ids)
    inputs = sample.inputs(policy, ROWS[1], np.empty(0, np.int64), words.question(question))
    with torch.inference_mode():
        out = sample.library.generate(
            **inputs, max_new_tokens=longest, do_sample=False, eos_token_id=words.eos, pad_token_id=0,
            logits_processor=LogitsProcessorList([OnlyRows(torch.from_numpy(allowed))]),
        )  # fmt: skip
    expected = words.words(out[0, inputs["input_ids"].shape[1] :].numpy())
    assert policy.answer(ROWS[1].images, question, longest) == expected


@pytest.mark.parametrize("part", ["vision", "projector", "decoder"])
def test_training_a_part_changes_exactly_that_part(sample: Sample, part: str) -> None:
    policy = family_of(sample.folder).load(sample.folder, Loading(trainable=True))
    before = {name: p.detach().clone() for name, p in policy.model.named_parameters()}
    model = adapt(policy.model, DemosFinetuneRecipe(train=(part,)))  # pyright: ignore[reportArgumentType]
    batch = policy.read(ROWS)
    answers = answers_of(np.zeros((len(ROWS), 1, 7)), policy.codec, policy.tokenizer)
    ids, labels = labelled(batch.prompts, answers, model.config.pad_token_id)
    model(batch.pixels, torch.from_numpy(ids), torch.from_numpy(labels), None).loss.backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=10.0).step()
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    named = {name for name in before if name.startswith(model.PARTS[part])}
    assert changed
    assert changed <= named
    assert {name for name, p in model.named_parameters() if p.requires_grad} == named


def test_the_parts_cover_every_parameter_once(sample: Sample) -> None:
    model = sample.policy().model
    for name, _ in model.named_parameters():
        assert sum(name.startswith(prefixes) for prefixes in model.PARTS.values()) == 1, name
