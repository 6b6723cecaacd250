"""The files of docs/cluster.md for SLURM and Kubernetes, as far as they can be checked without either.

VLA_KUBERAY_CRD names KubeRay's ray.io_rayclusters.yaml, by whose schema the manifest is then checked.
"""

from __future__ import annotations

import copy
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml")


def manifest(repository: Path) -> dict[str, dict[str, Any]]:
    documents = yaml.safe_load_all((repository / "launch/kuberay.yaml").read_text(encoding="utf-8"))
    return {document["kind"]: document for document in documents}


def test_the_manifest_has_the_pinned_ray_and_one_label_that_the_network_policy_selects(repository: Path) -> None:
    found = manifest(repository)
    pinned = re.search(r"^ray==(.+)$", (repository / "constraints.txt").read_text(), re.MULTILINE)
    spec = found["RayCluster"]["spec"]
    assert pinned is not None and spec["rayVersion"] == pinned[1]
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    label = {"vla-robot/ray": "yes"}
    assert [group["template"]["metadata"]["labels"] for group in groups] == [label, label]
    policy = found["NetworkPolicy"]["spec"]
    assert policy["podSelector"]["matchLabels"] == label
    assert policy["ingress"] == [{"from": [{"podSelector": {"matchLabels": label}}]}]


@pytest.mark.skipif("VLA_KUBERAY_CRD" not in os.environ, reason="VLA_KUBERAY_CRD names no file of KubeRay")
def test_the_manifest_fits_kuberays_schema(repository: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    crd = yaml.safe_load(Path(os.environ["VLA_KUBERAY_CRD"]).read_text(encoding="utf-8"))
    [schema] = [v["schema"]["openAPIV3Schema"] for v in crd["spec"]["versions"] if v["name"] == "v1"]
    strict = _closed(schema)
    jsonschema.validate(manifest(repository)["RayCluster"], strict)
    wrong = copy.deepcopy(manifest(repository)["RayCluster"])
    wrong["spec"]["workerGroupSpecs"][0]["minReplica"] = 1
    with pytest.raises(jsonschema.ValidationError, match="minReplica"):
        jsonschema.validate(wrong, strict)


def _closed(schema: Any) -> Any:
    """Return a schema that refuses unknown keys, and takes what Kubernetes writes as a number or as text."""
    if isinstance(schema, list):
        return [_closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _closed(value) for key, value in schema.items()}
    if made.get("x-kubernetes-int-or-string"):
        made.pop("type", None)
    known = schema.get("type") == "object" and isinstance(schema.get("properties"), dict)
    if known and "additionalProperties" not in schema and schema["properties"].keys() - {"kind"}:
        made["additionalProperties"] = False
    return made


def test_the_slurm_file_is_valid_bash(repository: Path) -> None:
    subprocess.run(["bash", "-n", str(repository / "launch/ray.sbatch")], check=True)
