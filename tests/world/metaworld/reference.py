"""Runs in Meta-World's environment: an episode of its scripted policy, and its sets of tasks.

python reference.py TASK SET STEPS OUT.npz
"""

import json
import sys
import warnings

import numpy as np

warnings.filterwarnings("ignore")
import metaworld  # noqa: E402
import metaworld.policies  # noqa: E402
from metaworld.env_dict import ALL_V3_ENVIRONMENTS, ML10_V3, MT10_V3  # noqa: E402

name, number, steps, out = f"{sys.argv[1]}-v3", int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
benchmark = metaworld.MT1(name, seed=42)
env = benchmark.train_classes[name]()
expert = metaworld.policies.ENV_POLICY_MAP[name]()
env.set_task(benchmark.train_tasks[number])
seen = [env.reset()[0]]
actions = []
for _ in range(steps):
    actions.append(np.clip(expert.get_action(seen[-1]), -1, 1))
    seen.append(env.step(actions[-1])[0])
sets = {"mt50": list(ALL_V3_ENVIRONMENTS), "mt10": list(MT10_V3)}
sets |= {"ml10_train": list(ML10_V3["train"]), "ml10_test": list(ML10_V3["test"])}
np.savez(out, seen=np.stack(seen), actions=np.stack(actions), sets=json.dumps(sets))
