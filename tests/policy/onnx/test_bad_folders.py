"""What a folder, a recipe or an observation may be that is not as it should be: an error before anything moves."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from vla_robot.core.errors import CheckpointError, ContractError, RecipeError, VlaError
from vla_robot.policy.kinds import check_policy
from vla_robot.policy.onnx.graph_file import weights_of
from vla_robot.policy.onnx.policy import OnnxPolicy
from vla_robot.policy.onnx.runtime import sha256_of
from vla_robot.recipe.policy import OnnxRecipe

from ..openvla.tiny_policies import observation

type Copied = Callable[[], Path]
type Change = Callable[[Any], None]

SEE = "see_2.onnx"


def rewritten(folder: Path, change: Change) -> Path:
    """The folder with a changed graph, and with the new graph's sha256 in its record: nobody's disk did this."""
    path = folder / SEE
    model = onnx.load(path, load_external_data=False)
    change(model)
    path.write_bytes(model.SerializeToString())
    return recorded(folder, files={**record_of(folder)["files"], SEE: sha256_of(path)})


def record_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "onnx.json").read_text())


def recorded(folder: Path, **changes: Any) -> Path:
    (folder / "onnx.json").write_text(json.dumps(record_of(folder) | changes))
    return folder


def refused(folder: Path, says: str) -> None:
    with pytest.raises(CheckpointError, match=says):
        OnnxPolicy(folder)


@pytest.mark.parametrize("key", ["opset", "ir", "format"])
def test_a_folder_of_another_version_is_refused(copied: Copied, key: str) -> None:
    refused(recorded(copied(), **{key: 99}), rf"{key} is 99, but this version of vla_robot reads \d+\. Export the")


def test_a_graph_of_another_version_than_its_record_says_is_refused(copied: Copied) -> None:
    def newer(model: Any) -> None:
        model.opset_import[0].version = 21

    def older(model: Any) -> None:
        model.ir_version = 8

    for change in (newer, older):
        refused(rewritten(copied(), change), r"file format 10 and operators 20 is read\. Export")


def test_damage_in_any_file_is_found_before_the_runtime_reads_it(copied: Copied) -> None:
    for name in ("weights.bin", SEE, "begin_2x64.onnx", "correct_2x32.onnx"):
        folder = copied()
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)
        refused(folder, rf"{name} is damaged: its sha256 is not that of onnx\.json")
        (folder / name).write_bytes(content[:-5])
        refused(folder, f"{name} is damaged")
        (folder / name).unlink()
        refused(folder, f"{name} cannot be read")
        with pytest.raises(CheckpointError, match=f"{name} is missing"):
            check_policy(OnnxRecipe(checkpoint=folder))


@pytest.mark.parametrize("name", ["tokenizer.json", "dataset_statistics.json", "onnx.json"])
def test_a_small_file_that_is_missing_or_no_json_is_told(copied: Copied, name: str) -> None:
    folder = copied()
    (folder / name).write_bytes(b"{")
    refused(folder, name)
    (folder / name).unlink()
    refused(folder, f"{name} is missing")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("buckets", []),
        ("buckets", [{"rows": 0, "text": 32}]),
        ("buckets", [{"rows": 1}]),
        ("frames", [1, 2]),
        ("inputs", {}),
        ("answer", {"chunk": 1}),
        ("prompt", None),
        ("preprocessing", {"kind": "round", "means": [[0, 0, 0]], "stds": [[1, 1, 1]]}),
        ("preprocessing", {"kind": "square", "means": [[0]], "stds": [[1, 1, 1]]}),
        ("precision", "int2"),
        ("threads", -1),
        ("files", {}),
        ("parity", {"more": 1}),
    ],
)
def test_an_impossible_record_is_told(copied: Copied, key: str, value: object) -> None:
    refused(recorded(copied(), **{key: value}), r"onnx\.json")


def moved(place: dict[str, str]) -> Change:
    """Other entries of the place of a graph's first weight outside."""

    def change(model: Any) -> None:
        tensor = next(t for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL)
        for entry in tensor.external_data:
            entry.value = place.get(entry.key, entry.value)

    return change


@pytest.mark.parametrize(
    "location", ["../secret.bin", "/etc/passwd", "sub/weights.bin", "weights.bin/../x", "", "onnx.json"]
)
def test_weights_in_another_file_are_refused(copied: Copied, location: str) -> None:
    refused(rewritten(copied(), moved({"location": location})), r"holds weights in .*, not in weights\.bin, which")


@pytest.mark.parametrize(
    "place", [{"offset": "99999999999"}, {"length": "4"}, {"offset": "-1"}, {"offset": "1e3"}, {"offset": "9" * 30}]
)
def test_weights_outside_of_their_file_are_refused(copied: Copied, place: dict[str, str]) -> None:
    refused(rewritten(copied(), moved(place)), rf"{SEE}(: weights of shape| holds weights at)")


def huge(model: Any) -> None:
    tensor = next(t for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL)
    tensor.dims[:] = [2**31 - 1, 2**31 - 1]


def second_graph(model: Any) -> None:
    data = model.SerializeToString()
    model.Clear()
    model.ParseFromString(data)
    model.training_info.add()


def custom(model: Any) -> None:
    model.graph.node[0].domain = "com.microsoft"


def operators(model: Any) -> None:
    model.opset_import.add(domain="com.microsoft", version=1)


def function(model: Any) -> None:
    model.functions.add(name="f", domain="d")


def branch(model: Any) -> None:
    inner = helper.make_graph([], "inner", [], [])
    model.graph.node.append(helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner))


def constant_outside(model: Any) -> None:
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), "c")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")
    model.graph.node.append(helper.make_node("Constant", [], ["c"], value=tensor))


def sparse(model: Any) -> None:
    model.graph.sparse_initializer.add()


@pytest.mark.parametrize("change", [huge, second_graph, custom, operators, function, branch, constant_outside, sparse])
def test_what_the_export_does_not_write_is_refused(copied: Copied, change: Change) -> None:
    refused(rewritten(copied(), change), SEE)


@given(st.data())
def test_no_bytes_raise_another_error_than_ours(made: Path, data: st.DataObject) -> None:
    graph = bytearray((made / SEE).read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        graph[data.draw(st.integers(0, len(graph) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(graph)))
    for content in (bytes(graph), bytes(graph[:cut])):
        try:
            weights_of("here", content, 10**6)
        except CheckpointError as error:
            assert str(error).startswith("here")


def test_a_graph_that_the_runtime_does_not_take_is_told(copied: Copied) -> None:
    def unknown_operator(model: Any) -> None:
        model.graph.node[0].op_type = "NoSuchOperator"

    refused(rewritten(copied(), unknown_operator), rf"{SEE}: onnxruntime cannot open it: .*NoSuchOperator")


def test_a_provider_that_is_not_there_is_named_with_its_wheel(made: Path) -> None:
    with pytest.raises(ContractError, match=r"provider is 'cuda', but onnxruntime \S+ here has: cpu.*onnxruntime-gpu"):
        OnnxPolicy(made, provider="cuda")


def test_a_provider_that_does_not_start_is_no_cpu(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime goes on with the CPU, with a warning."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    with pytest.raises(ContractError, match="onnxruntime cannot start CUDAExecutionProvider on this computer"):
        OnnxPolicy(made, provider="cuda")


def test_a_recipe_says_where_by_its_provider(made: Path) -> None:
    with pytest.raises(RecipeError, match="runs where its recipe's `provider` says: 'cpu'"):
        OnnxRecipe(checkpoint=made, device="cuda")
    with pytest.raises(RecipeError, match="threads must be 0 to 1024, got -1"):
        OnnxRecipe(checkpoint=made, threads=-1)


def test_an_instruction_that_no_graph_reads_is_told(made: Path) -> None:
    policy = OnnxPolicy(made)
    with pytest.raises(
        ContractError, match=r"tokens of text, but the longest graph of this folder reads 64.*--text 1\d\d"
    ):
        policy.act([observation(), observation("lift " + "the very red " * 9 + "cube")])
    assert len(policy.act([observation()])) == 1


def test_frames_of_another_shape_than_the_graphs_read_are_told(copied: Copied) -> None:
    native = {"kind": "native", "fit": "within", "cell": 14, "smallest": 0, "largest": 10**6}
    scales = {"means": [[0, 0, 0]], "stds": [[1, 1, 1]]}
    policy = OnnxPolicy(recorded(copied(), preprocessing=native | scales))
    with pytest.raises(ContractError, match=r"frames of 32x32 px become pixels of shape .* --frame 32 32"):
        policy.act([observation()])


@pytest.mark.parametrize(
    "wrong", [{"images": {}}, {"state": np.zeros(3)}, {"state": np.full(2, np.nan)}, {"instruction": " "}]
)
def test_an_observation_that_does_not_fit_is_told(made: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(VlaError):
        OnnxPolicy(made).act([replace(observation(), **wrong)])
