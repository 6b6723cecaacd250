"""A stranger's config.json reaches no code, no other file and no network, and takes no time and memory to refuse."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import vla_robot
from vla_robot.core.errors import CheckpointError, ContractError
from vla_robot.core.messages import Observation
from vla_robot.policy.kinds import check_policy
from vla_robot.policy.openvla import weights
from vla_robot.policy.openvla.policy import OpenVLAPolicy, check, load
from vla_robot.policy.vla import safetensors_files
from vla_robot.recipe.policy import OpenVLARecipe

OTHER = "vit_so400m_patch14_siglip_224"


@pytest.fixture(autouse=True)
def reached(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Whatever a load tries to unpickle or to look up elsewhere."""
    seen: list[str] = []

    def unpickle(*args: object, **_: object) -> None:
        seen.append(f"torch.load {args[0]}")
        raise RuntimeError("unpickled")

    def connect(*args: object, **_: object) -> None:
        seen.append("a connection")
        raise OSError("no network")

    monkeypatch.setattr(torch, "load", unpickle)
    monkeypatch.setattr(socket.socket, "connect", connect)
    return seen


def text_of(folder: Path, **changes: object) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())["text_config"] | changes


def ours_of(folder: Path, **changes: object) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())["vla_robot"] | changes


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("checkpoint_path", "weights.pth"),
        ("pretrained", True),
        ("pretrained_cfg", {"hf_hub_id": "a/b"}),
        ("pretrained_cfg_overlay", {"file": "weights.pth"}),
        ("cache_dir", "elsewhere"),
        ("depth", 20_000),
        ("embed_dim", -1),
        ("num_heads", True),
        ("mlp_ratio", float("inf")),
    ],
)
def test_a_tower_takes_sizes_alone(tiny_folder, broken, reached: list[str], key: str, value: object) -> None:
    folder = broken(vla_robot=ours_of(tiny_folder, tower_overrides=[{key: value}, {}]))
    with pytest.raises(CheckpointError, match=f"tower_overrides.*{key}|{key}.*is "):
        load(folder)
    assert reached == []


@pytest.mark.parametrize(
    "name", ["hf-hub:a/b", "hf_hub:a/b", "local-dir:/etc", "/etc/passwd", "../x", "a/b", "", "a" * 300, 7, None, ["x"]]
)
def test_a_tower_is_named_plainly(broken: Callable[..., Path], reached: list[str], name: object) -> None:
    with pytest.raises(CheckpointError, match="only a plain model name of timm is read"):
        load(broken(timm_model_ids=[name, OTHER]))
    assert reached == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"attn_implementation": "a/b"}, "attn_implementation is 'a/b'; code from elsewhere is never run"),
        ({"_attn_implementation": "a/b@main:c"}, "code from elsewhere is never run"),
        ({"quantization_config": {"quant_method": "x"}}, "unknown key of text_config 'quantization_config'"),
        ({"auto_map": {"AutoModel": "a.B"}}, "unknown key of text_config 'auto_map'"),
        ({"num_hidden_layers": 20_000}, "num_hidden_layers is 20000; expected a whole number from 1 to 256"),
        ({"max_position_embeddings": 10**12}, "max_position_embeddings is 10{12}; expected a whole number"),
        ({"vocab_size": 2.5}, r"vocab_size is 2\.5"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; only 'silu' is computed"),
        ({"attention_bias": True}, "attention_bias is True; only False is computed"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4}}, "only rope_type 'default' is computed"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
    ],
)
def test_a_decoder_takes_its_own_keys_alone(tiny_folder, broken, reached: list[str], change, reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason):
        load(broken(text_config=text_of(tiny_folder, **change)))
    assert reached == []


def test_keys_that_any_configuration_of_transformers_carries_change_nothing(tiny_folder, broken) -> None:
    generic = {"torch_dtype": "bfloat16", "architectures": ["LlamaForCausalLM"], "use_cache": True, "top_k": 50}
    folder = broken(text_config=text_of(tiny_folder, attn_implementation="sdpa", rope_scaling=None, **generic))
    same = zip(load(folder).model.parameters(), load(tiny_folder).model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in same)


@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b'{"a": ' + b"9" * 10_000 + b"}", b"\xff", b"", b"[]", b'{"model_type": "openvla"}']
)
@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "dataset_statistics.json"])
def test_a_file_that_is_no_json_object_is_told(broken: Callable[..., Path], name: str, content: bytes) -> None:
    folder = broken()
    (folder / name).write_bytes(content)
    if name == "dataset_statistics.json" and content.startswith(b'{"model'):
        with pytest.raises(ContractError, match="the statistics of 'model_type' must be a table"):
            check(folder)
        return
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        load(folder)


@pytest.mark.parametrize(
    "weight_map", [{"a": "../other.safetensors"}, {"a": "/x.safetensors"}, {"a": ""}, {"a": 1}, []]
)
def test_an_index_names_files_of_its_own_folder(broken: Callable[..., Path], weight_map: object) -> None:
    folder = broken()
    (folder / safetensors_files.INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match="weight_map must name files of this folder"):
        load(folder)


def test_checking_finds_what_the_first_second_of_a_run_would(
    tiny_folder: Path, broken: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    check_policy(OpenVLARecipe(checkpoint=tiny_folder, statistics_key="toy"))
    with pytest.raises(ContractError, match="unknown statistics key 'toi'; did you mean 'toy'"):
        check_policy(OpenVLARecipe(checkpoint=tiny_folder, statistics_key="toi"))
    folder = broken()
    (folder / weights.SINGLE).unlink()
    with pytest.raises(CheckpointError, match=r"lacks model\.safetensors"):
        check_policy(OpenVLARecipe(checkpoint=folder))
    monkeypatch.setattr(weights, "_fill", lambda *_: pytest.fail("weights were read"))
    check_policy(OpenVLARecipe(checkpoint=tiny_folder))


def test_natural_arguments_work_or_are_told(tiny_folder: Path) -> None:
    policy = vla_robot.load_policy(str(tiny_folder), dtype=torch.bfloat16, device=torch.device("cpu"))
    assert policy.model.projector.fc1.weight.dtype is torch.bfloat16
    for dtype in (torch.int8, "bf16", float, None):
        with pytest.raises(ContractError, match="unknown dtype"):
            vla_robot.load_policy(tiny_folder, dtype=dtype)  # type: ignore[arg-type]
    for device in ("gpu", "cuda:99", 3.5):
        with pytest.raises(ContractError, match="device is"):
            vla_robot.load_policy(tiny_folder, device=device)  # type: ignore[arg-type]


def test_what_is_no_list_of_observations_is_told(tiny: OpenVLAPolicy) -> None:
    seen = Observation({}, [0.0, 0.0], "lift", stamp_ns=0, step=0)  # type: ignore[arg-type]
    for given, reason in (
        (seen, r"takes a list of observations, got Observation: act\(\[observation\]\)"),
        ([{"image": None}], "Observation, got dict"),
        ([Observation({}, seen.state, None, 0, 0)], "an instruction is text, got NoneType"),  # type: ignore[arg-type]
    ):
        with pytest.raises(ContractError, match=reason):
            tiny.act(given)  # type: ignore[arg-type]
