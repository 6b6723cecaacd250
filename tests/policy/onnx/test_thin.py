"""The engine in a process of its own, in which torch and the other heavy packages cannot be imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HEAVY = ("torch", "transformers", "timm", "safetensors", "onnx", "onnxscript", "lerobot", "mujoco")
ROOT = Path(__file__).resolve().parents[3]
REFUSES = """
import sys
from importlib.abc import MetaPathFinder

class Refuses(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {heavy}:
            raise AssertionError(f"{{name}} is imported")

sys.meta_path.insert(0, Refuses())
"""
ACTS = """
from vla_robot.cli.build import build_policy
from vla_robot.recipe.policy_source import find_policy
from vla_robot.serve.policy.load import build_served_policy, device_of
import numpy as np
from vla_robot.core.messages import Observation

source = find_policy("{folder}")
policy = build_served_policy(source)
embodiment = policy.embodiment
images = {{camera.name: np.zeros((camera.height, camera.width, 3), np.uint8) for camera in embodiment.cameras}}
seen = Observation(images, np.zeros(len(embodiment.state)), "lift the red cube", 0, 0)
served = policy.act([seen], None)
alone = build_policy(source, None, embodiment).act([seen])
assert (served[0].actions == alone[0].actions).all()
print(device_of(source), alone[0].actions.shape, sorted(set({heavy}) & set(sys.modules)))
"""


def said(script: str) -> str:
    """What a script prints in which heavy packages cannot be imported."""
    whole = REFUSES.format(heavy=HEAVY) + script
    done = subprocess.run([sys.executable, "-c", whole], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_policy_acts_and_is_served_without_torch(made: Path) -> None:
    assert said(ACTS.format(heavy=HEAVY, folder=made)).strip() == "onnxruntime's cpu (1, 7) []"


def test_replicas_of_a_policy_need_no_torch(made: Path) -> None:
    script = (
        "from vla_robot.recipe.policy_source import find_policy\n"
        "from vla_robot.serve.replicas.program import load\n"
        f"print(load(find_policy({str(made)!r}), 1).device)"
    )
    assert said(script).strip() == "onnxruntime's cpu"


def test_a_policy_is_measured_without_torch(made: Path) -> None:
    told = said(
        f"from vla_robot.cli.main import main\nmain(['bench', 'policy', '--policy', '{made}', '--rounds', '1'])"
    )
    assert "float32" in told and "inferences/s" in told
