"""OpenVLA's real towers and projector, 0.8 billion parameters filled by rule, against the reference's answers.

    VLA_FULL_VISION=FOLDER make test PYTEST_ARGS="-m slow -k full_vision"

FOLDER holds config.json, image_0.png to image_4.png and expected.npz. It needs 8 GB of memory and a few minutes.
With VLA_FULL_VISION_OUT=OUT the weights stay in OUT as a policy folder of 3 GB: `vla bench policy --policy OUT`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vla_robot.core.normalise import unnormalise
from vla_robot.policy.openvla.weights import save_model
from vla_robot.policy.vla.json_files import write_json

FOLDER = os.environ.get("VLA_FULL_VISION")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not FOLDER, reason="VLA_FULL_VISION names no folder")]


@pytest.fixture(scope="module")
def full(oracle_in: Callable[[Path], Any]) -> Any:
    """An `Oracle`, as conftest.py defines it."""
    assert FOLDER is not None
    return oracle_in(Path(FOLDER))


def test_full_vision_tokens_and_actions_are_the_references_alone_and_in_a_batch(full: Any) -> None:
    expected = full.expected
    wanted = np.stack([expected[f"{i}/action_tokens"] for i in range(5)])
    alone = [full.policy.generate_tokens([full.images[i]], [full.ids(i)])[0] for i in range(5)]
    np.testing.assert_array_equal(alone, wanted)
    order = [3, 0, 4, 1, 2]
    together = full.policy.generate_tokens([full.images[i] for i in order], [full.ids(i) for i in order])
    np.testing.assert_array_equal(together, wanted[order])
    for i, tokens in enumerate(alone):
        stats = full.policy.action_stats(str(expected[f"{i}/unnorm_key"]))
        action = unnormalise(full.policy.codec.decode(tokens, 7)[0], stats)
        np.testing.assert_allclose(action, expected[f"{i}/action"], atol=1e-6)


@pytest.mark.parametrize("index", range(5))
def test_full_vision_first_logits_are_the_references(full: Any, index: int) -> None:
    logits = full.policy.first_logits([full.images[index]], [full.ids(index)])
    np.testing.assert_allclose(logits[0], full.expected[f"{index}/first_logits_31744_32000"], atol=1e-3)


@pytest.mark.parametrize("index", [0, 2])
def test_full_vision_pixels_are_the_references(full: Any, index: int) -> None:
    pixels = full.policy.preprocessor([[full.images[index]]])[0, 0]
    np.testing.assert_allclose(pixels, full.expected[f"{index}/pixel_values"], atol=1e-5)


def test_full_vision_training_loss_is_the_references(full: Any) -> None:
    expected = full.expected
    pixels = torch.from_numpy(full.policy.preprocessor([[full.images[i]] for i in expected["train/images"]]))
    ids, labels = (torch.from_numpy(expected[f"train/{name}"]) for name in ("input_ids", "labels"))
    with torch.no_grad():
        output = full.policy.model(pixels, ids, labels, None)
    assert float(output.loss) == pytest.approx(float(expected["train/loss"]), abs=1e-4)


@pytest.mark.timeout(1800)  # the self-test in bf16 takes minutes on a CPU without bf16 products
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_full_vision_loads_within_1_3_times_its_weights(
    written: Path, tiny_folder: Path, loading_peak: Callable[..., tuple[int, int]], dtype: str
) -> None:
    peak, weights = loading_peak(tiny_folder, written, dtype)
    assert weights > 1e9
    assert peak < 1.3 * weights


@pytest.fixture(scope="module")
def written(full: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The oracle's weights as a policy folder; the tokenizer is the shipped policy's, as the oracle has none."""
    folder = Path(os.environ.get("VLA_FULL_VISION_OUT") or tmp_path_factory.mktemp("full_vision"))
    model = full.policy.model
    save_model(model, folder)
    write_json(folder / "preprocessor_config.json", full.policy.preprocessor.to_dict())
    key = next(iter(model.config.norm_stats))
    write_json(folder / "dataset_statistics.json", {key: model.config.norm_stats[key]})
    shutil.copy(Path(__file__).resolve().parents[3] / "policies" / "openvla_nano" / "tokenizer.json", folder)
    return folder
