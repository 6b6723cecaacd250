from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vla_robot.core.errors import CheckpointError, ContractError
from vla_robot.policy.openvla.checkpoint import read_checkpoint
from vla_robot.policy.openvla.create import CONTROL
from vla_robot.policy.openvla.network.config import OpenVLAConfig
from vla_robot.policy.openvla.prompt import TEMPLATE, TEMPLATE_VICUNA, PromptTokenizer, finish
from vla_robot.policy.vla.codecs.bins import openvla_bins
from vla_robot.policy.vla.inputs.preprocess import Preprocessor
from vla_robot.policy.vla.inputs.prompts import train_tokenizer

MEANS = ((0.484375, 0.455078125, 0.40625), (0.5, 0.5, 0.5))
STDS = ((0.228515625, 0.2236328125, 0.224609375), (0.5, 0.5, 0.5))
PROMPT = PromptTokenizer(train_tokenizer([TEMPLATE.format(instruction="lift the red cube")], 320, CONTROL))


def test_the_prompt_is_the_published_one() -> None:
    assert PROMPT.text("Lift the RED cube") == "In: What action should the robot take to lift the red cube?\nOut:"
    assert PROMPT.text("Lift it. ") == "In: What action should the robot take to lift it. ?\nOut:"  # as in training
    v01 = PromptTokenizer(train_tokenizer([TEMPLATE.format(instruction="lift")], 320, CONTROL), TEMPLATE_VICUNA).text(
        "lift"
    )
    assert v01.endswith("USER: What action should the robot take to lift? ASSISTANT:")


def test_ids_begin_with_bos_and_end_with_the_space() -> None:
    ids = PROMPT("lift the red cube")
    assert (ids[0], ids[-1]) == (PROMPT.bos, PROMPT.space)
    np.testing.assert_array_equal(finish(ids, PROMPT.space), ids)
    np.testing.assert_array_equal(finish(ids[:-1], PROMPT.space), ids)


@pytest.fixture(scope="module")
def llama_2(tmp_path_factory: pytest.TempPathFactory) -> PromptTokenizer:
    """Llama-2's own tokenizer, which travels in the package wordllama; no code of that package runs."""
    found = importlib.util.find_spec("wordllama")
    if found is None or found.origin is None:
        pytest.skip("needs the package wordllama")
    folder = tmp_path_factory.mktemp("llama")
    real = Path(found.origin).parent / "tokenizers" / "l2_supercat_tokenizer_config.json"
    (folder / "tokenizer.json").write_bytes(real.read_bytes())
    return PromptTokenizer.read(folder)


def test_prompts_have_llamas_own_ids(llama_2: PromptTokenizer) -> None:
    asked = [1, 512, 29901, 1724, 3158, 881, 278, 19964, 2125, 304]  # <s> In: What action should the robot take to
    ended = [29973, 13, 3744, 29901, 29871]  # ? newline Out: and the space
    assert llama_2("Lift the red cube").tolist() == [*asked, 13777, 278, 2654, 28704, *ended]
    assert (llama_2.bos, llama_2.eos, llama_2.space) == (1, 2, 29871)


def test_llamas_last_words_are_the_actions(llama_2: PromptTokenizer) -> None:
    ids = openvla_bins(32_000, 256).ids
    assert (ids[0], ids[-1]) == (31_744, 31_999)
    for text in ("lift the red cube", "move 12 cm to the left, then open the gripper"):
        assert not set(ids) & set(llama_2(text).tolist())


def test_an_instruction_cannot_write_llamas_control_tokens(llama_2: PromptTokenizer) -> None:
    for text in ("lift </s> the cube", "<s>lift"):
        with pytest.raises(ContractError, match="control token"):
            llama_2(text)


@given(st.text(min_size=1).filter(lambda text: text.replace(".", "").strip()))
def test_every_instruction_has_ids_within_the_text_vocabulary(text: str) -> None:
    ids = PROMPT(text)
    assert ((ids >= 0) & (ids < 320)).all()


def test_different_instructions_have_different_ids() -> None:
    assert PROMPT("lift the red cube").tolist() != PROMPT("lift the blue cube").tolist()


@pytest.mark.parametrize("text", ["", " ", " . "])
def test_no_instruction_is_refused(text: str) -> None:
    with pytest.raises(ContractError, match="the instruction is empty; say what the robot should do"):
        PROMPT(text)


def test_a_folder_without_a_readable_tokenizer_is_told(tmp_path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is missing"):
        PromptTokenizer.read(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is not a tokenizer"):
        PromptTokenizer.read(tmp_path)


@pytest.mark.parametrize("strategy", ["resize-naive", "letterbox", "resize-crop"])
@given(height=st.integers(1, 90), width=st.integers(1, 90))
def test_any_frame_becomes_a_square(strategy: str, height: int, width: int) -> None:
    squared = Preprocessor(28, strategy, MEANS, STDS).resized(np.full((height, width, 3), 7, np.uint8))
    assert squared.shape == (28, 28, 3)
    assert squared.dtype == np.uint8


def test_resize_naive_is_pils_bicubic() -> None:
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(image).resize((28, 28), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(Preprocessor(28, "resize-naive", MEANS, STDS).resized(image), expected)


def test_a_letterbox_fills_with_the_mean_colour() -> None:
    squared = Preprocessor(28, "letterbox", MEANS, STDS).resized(np.zeros((28, 14, 3), np.uint8))
    np.testing.assert_array_equal(squared[:, 0], np.tile([123, 116, 103], (28, 1)))
    np.testing.assert_array_equal(squared[:, 14], np.zeros((28, 3)))


def test_resize_crop_keeps_the_middle() -> None:
    image = np.zeros((28, 84, 3), np.uint8)
    image[:, 28:56] = 255
    np.testing.assert_array_equal(Preprocessor(28, "resize-crop", MEANS, STDS).resized(image), 255)


def test_each_tower_gets_its_own_normalisation() -> None:
    pixels = Preprocessor(28, "resize-naive", MEANS, STDS)([[np.full((28, 28, 3), 255, np.uint8)]])
    assert pixels.shape == (1, 1, 6, 28, 28)
    np.testing.assert_allclose(pixels[0, 0, :, 0, 0], [*((1 - np.array(MEANS[0])) / STDS[0]), 1, 1, 1], rtol=1e-6)


def test_the_written_preprocessor_reads_back(tiny_folder) -> None:
    config = OpenVLAConfig.read(tiny_folder)
    fits = config.image_size, len(config.timm_model_ids), config.image_resize_strategy
    first = Preprocessor.read(tiny_folder, *fits)
    assert Preprocessor.from_dict(first.to_dict(), *fits, "memory") == first


def test_means_that_do_not_fit_the_towers_are_told() -> None:
    with pytest.raises(CheckpointError, match="1 means and 2 stds for 2 towers"):
        Preprocessor.from_dict({"means": [MEANS[0]], "stds": STDS}, 28, 2, "resize-naive", "memory")


def test_a_checkpoint_on_vicuna_is_asked_in_vicunas_way(tiny_folder, broken) -> None:
    for folder, expected in ((tiny_folder, "In: "), (broken(llm_backbone_id="vicuna-v15-7b"), "A chat between ")):
        tokenizer = read_checkpoint(folder).tokenizer
        assert tokenizer is not None
        assert tokenizer.text("lift the red cube").startswith(expected)


def test_a_univla_that_calls_itself_openvla_is_told(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["lift"], 320, CONTROL)
    tokenizer.add_special_tokens([f"<ACT_{code}>" for code in range(32)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(CheckpointError, match="holds a UniVLA, not an OpenVLA"):
        PromptTokenizer.read(tmp_path)
