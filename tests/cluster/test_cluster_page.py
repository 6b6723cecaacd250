"""The commands of docs/cluster.md, run as they stand with fewer episodes and folders of the test.

Ray's and SLURM's run in namespaces of processes and network of their own: `ray stop` ends every Ray of a computer.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

NAMESPACES = ("unshare", "--pid", "--net", "--mount-proc", "--fork", "--kill-child")

RUN_HERE = (
    "vla eval --env lift --policy expert --episodes 60 --cluster local",
    "vla data stats gs://BUCKET/bridge_orig --cluster auto --out dataset_statistics.json",
    "vla data doctor bridge_orig --root data/oxe --cluster auto",
    "vla data convert data/mine gs://BUCKET/mine --to rlds --cluster auto",
    "vla data convert bridge_orig data/bridge --to lerobot --rate-hz 5 --cluster auto",
    "ray get-auth-token --generate",
    "ray start --head --num-cpus 2 --node-ip-address 127.0.0.1 --include-dashboard=false",
    "vla eval --env lift --policy expert --episodes 20 --cluster auto",
    "ray stop",
    "sbatch --nodes 8 --cpus-per-task 16 --mem 64G launch/ray.sbatch eval --suite libero_spatial --policy expert "
    "--out runs/spatial",
)
ELSEWHERE = {
    "pip install 'vla_robot[cluster]'": "installs: constraints.txt pins what the tests run with",
    "vla eval --suite libero_spatial --policy data/run/final --cluster auto --out runs/spatial": (
        "test_eval_on_nodes.py, with lift"
    ),
    "vla eval --suite libero_spatial --policy data/run/final --cluster auto --replicas 4 --out runs/spatial": (
        "below with lift and one replica; test_nodes.py gives two their GPUs"
    ),
    "vla serve data/run/final --cluster auto --replicas 4": "test_serve_on_nodes.py",
    "kubectl apply -f launch/kuberay.yaml": "needs Kubernetes; test_launch_files.py checks the manifest",
    "kubectl exec -it POD -- vla eval --suite libero_spatial --policy /shared/policy --cluster auto --out "
    "/shared/runs/spatial": "needs Kubernetes",
}
"""Commands that the tests below do not run -> where they are run, or what they need."""

TWO_TERMINALS = """
set -eu
ip link set lo up
ray get-auth-token --generate
ray start --head --num-cpus 2 --node-ip-address 127.0.0.1 --include-dashboard=false
vla eval --env lift --policy expert --episodes 2 --videos none --cluster auto --out {out}/auto
vla data stats local://{data}/bridge_orig --recipe bridge_orig --cluster auto --out {out}/dataset_statistics.json
vla data doctor bridge_orig --root {data} --cluster auto
vla data convert {data}/bridge_orig/1.0.0 local://{out}/mine --to rlds --cluster auto
vla data convert {data}/bridge_orig/1.0.0 {out}/bridge --to lerobot --rate-hz 5 --cluster auto
ray stop
"""
LOCAL = """
set -eu
ip link set lo up
vla eval --env lift --policy expert --episodes 2 --videos none --cluster local --out {out}/local
vla eval --env lift --policy openvla_nano --episodes 1 --videos none --cluster local --replicas 1 --out {out}/replicas
"""
SBATCH = """
set -eu
ip link set lo up
export SLURM_JOB_NODELIST=127.0.0.1 SLURM_JOB_ID=7 SLURM_CPUS_PER_TASK=1 SLURM_NNODES=2 SLURM_MEM_PER_NODE=4000
bash launch/ray.sbatch eval --env lift --policy expert --episodes 2 --videos none --out {out}/slurm
"""
FAKE_SLURM = {
    "scontrol": '#!/bin/sh\necho "$3"\n',
    "srun": '#!/bin/sh\nwhile [ "${1%ray}" = "$1" ]; do shift; done\nexec "$@"\n',
}
"""SLURM's two programs for one computer: the name of its node, and a step that runs here."""


def commands(page: str) -> set[str]:
    """The commands of a page's blocks, without comments."""
    lines = re.findall(r"^    (\S.*)$", page, re.MULTILINE)
    return {re.split(r" {2,}#", line)[0].strip() for line in lines}


def test_every_command_is_run_by_a_test_or_has_a_reason(repository: Path) -> None:
    page = (repository / "docs" / "cluster.md").read_text(encoding="utf-8")
    assert commands(page) == {*RUN_HERE, *ELSEWHERE}


@pytest.fixture
def out(tmp_path: Path, repository: Path) -> Path:
    """The folder of a script's results, with what it needs beside it."""
    pytest.importorskip("ray")
    if subprocess.run([*NAMESPACES, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this computer gives no namespaces of its own")
    shutil.copytree(repository / "tests" / "golden" / "rlds_samples", tmp_path / "data")
    for name, text in FAKE_SLURM.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def run(script: str, out: Path, repository: Path) -> str:
    """Run a script in namespaces of its own; return what it printed."""
    tools = [str(out.parent / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]
    own = {"PATH": os.pathsep.join(tools), "HOME": str(out.parent), "PYTHONPATH": str(repository)}
    own |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_raylet_start_wait_time_s": "300", "RAY_TMPDIR": "/tmp"}
    own["RAY_health_check_timeout_ms"] = "60000"
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "SLURM_"))} | own
    command = [*NAMESPACES, "bash", "-c", script.format(out=out, data=out.parent / "data")]
    done = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def seeds(out: Path) -> Sequence[int]:
    return sorted(json.loads(line)["seed"] for line in (out / "trials.jsonl").read_text().splitlines()[1:])


@pytest.mark.slow
@pytest.mark.sim
def test_two_terminals_and_data(out: Path, repository: Path) -> None:
    said = run(TWO_TERMINALS, out, repository)
    assert seeds(out / "auto") == [10_000, 10_001]
    assert "The largest worker took " in said
    assert "bridge_orig" in json.loads((out / "dataset_statistics.json").read_text())
    assert (out / "mine" / "1.0.0" / "dataset_info.json").is_file()
    assert (out / "bridge" / "meta" / "info.json").is_file()


@pytest.mark.slow
@pytest.mark.sim
def test_a_cluster_for_one_command(out: Path, repository: Path) -> None:
    run(LOCAL, out, repository)
    assert seeds(out / "local") == [10_000, 10_001]
    assert seeds(out / "replicas") == [10_000]


@pytest.mark.slow
@pytest.mark.sim
def test_the_slurm_file_starts_two_nodes_and_runs_its_command(out: Path, repository: Path) -> None:
    run(SBATCH, out, repository)
    assert seeds(out / "slurm") == [10_000, 10_001]
