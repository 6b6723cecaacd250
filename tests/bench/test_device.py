"""The baselines of `vla bench` keep every tensor on the model's device; torch's meta device stands for a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from benchmarks.models import inference_times, plain_inference, plain_training  # noqa: E402
from benchmarks.models.plain_inference import Baseline  # noqa: E402
from benchmarks.models.plain_vlm import PlainVLM, without_state  # noqa: E402
from benchmarks.policy import _scene  # noqa: E402
from vla_robot.policy.families import family_of  # noqa: E402
from vla_robot.policy.openvla.policy import load  # noqa: E402
from vla_robot.policy.vla.loading import Loading  # noqa: E402

from ..policy.openvla.tiny_policies import create_policy  # noqa: E402
from ..policy.vlm.tiny_vlms import create  # noqa: E402


def devices_of_generate(module: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Return argument -> device of the next call of a module's `generate`, which answers with one token."""
    found: dict[str, str] = {}

    def generate(**arguments: Any) -> Any:
        found.update({name: x.device.type for name, x in arguments.items() if isinstance(x, torch.Tensor)})
        return torch.zeros(1, 7, dtype=torch.int64, device="meta")

    monkeypatch.setattr(module, "generate", generate)
    return found


def without_values(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a module build timm's towers in main memory, and not fill them: the meta device has no values."""
    build = module.build_vit

    def built(*arguments: Any) -> Any:
        vit = build(*arguments)
        vit.load_state_dict = lambda *_, **__: None
        return vit

    monkeypatch.setattr(module, "build_vit", built)


def test_openvlas_baseline_has_all_on_the_models_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = load(create_policy(tmp_path), Loading(trainable=True))
    batch = policy.read([_scene(policy, 0)])
    policy.model.to("meta")
    without_values(plain_inference, monkeypatch)
    baseline = Baseline(policy.model, policy.preprocessor)
    found = devices_of_generate(baseline._language_model, monkeypatch)
    scene = _scene(policy, 0)
    baseline.tokens(list(scene.images.values()), batch.prompts[0], batch.state, 7)
    assert found == {"inputs_embeds": "meta", "attention_mask": "meta"}


@pytest.mark.parametrize("name", ["paligemma", "qwen3_vl", "gemma4"])
def test_transformers_baseline_has_all_on_the_models_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = create(tmp_path / name, name, use_state=False)
    policy = without_state(family_of(folder).load(folder))
    scene = _scene(policy, 0)
    policy.model.to("meta")
    baseline = PlainVLM(policy)
    found = devices_of_generate(baseline._vlm, monkeypatch)
    baseline.tokens(scene, 7)
    assert len(found) >= 4 and set(found.values()) == {"meta"}


def test_the_plain_training_loop_is_on_the_models_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = load(create_policy(tmp_path), Loading(trainable=True))
    policy.model.to("meta")
    without_values(plain_training, monkeypatch)
    plain = plain_training.PlainModel(policy.model)
    assert {p.device.type for p in plain.parameters()} == {"meta"}


def test_the_bandwidth_is_that_of_the_devices_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference_times, "BANDWIDTH_BYTES", 2**50)  # main memory has no room for it
    assert inference_times.memory_bytes_per_s(torch.device("meta"), repeats=1) > 0
