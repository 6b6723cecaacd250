"""What a bad network costs: a policy on Lift, locally and over 20 ms +- 5 ms with 1 % loss, or another network.

    python tests/tools/success_over_proxy.py --episodes 20 --json proxy.json
    python tests/tools/success_over_proxy.py --policy data/nano_flow/final --splice rtc --delay-ms 50

Bridge, policy server, loop and network are processes of their own. In real time the arm does not wait for the policy,
in lockstep it does. All drive the same seeds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vla_robot.core.stats import wilson_interval

POLICY = "openvla_nano"
ENV = "envs/lift.toml"
VLA = (sys.executable, "-m", "vla_robot.cli.main")
PROXY = (sys.executable, str(Path(__file__).with_name("shaping_proxy.py")))
END_S = 10.0


@contextlib.contextmanager
def running(command: Sequence[str], ready: str) -> Iterator[str]:
    """A program in the background, and what the pattern `ready` found in the first line that it fits."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if found := re.search(ready, line):
                break
        else:
            raise RuntimeError(f"{' '.join(command)} ended before it was ready")
        yield found[1]
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_S)
        process.kill()


def score(folder: Path, name: str, args: argparse.Namespace, *options: str) -> dict[str, Any]:
    """One run of all episodes, as a row."""
    out = folder / f"{name}.json"
    command = [*VLA, "run", *options, "--episodes", str(args.episodes), "--seed", str(args.seed), "--json", str(out)]
    subprocess.run([*command, "--out", str(folder / name)], check=False)
    episodes = json.loads(out.read_text())["episodes"]
    successes = sum(episode["success"] for episode in episodes)
    return {
        "name": name,
        "value": successes / len(episodes),
        "unit": "1",
        "successes": successes,
        "episodes": len(episodes),
        "interval_95": wilson_interval(successes, len(episodes)),
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def measure(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Three rows: local, asynchronous over the network, synchronous over the network."""
    rows = [score(folder, "local", args, "--env", ENV, "--policy", args.policy)]
    listen = free_port()
    bridge = (*VLA, "bridge", ENV, "--bind", "tcp://127.0.0.1:0", "--splice", args.splice)
    serve = (*VLA, "serve", args.policy, "--bind", "tcp://127.0.0.1:0")
    shape = (f"--{name}={getattr(args, name.replace('-', '_'))}" for name in ("delay-ms", "jitter-ms", "loss"))
    with (
        running(bridge, r"listening on tcp://127\.0\.0\.1:(\d+)") as port,
        running(serve, r"(tcp://127\.0\.0\.1:\d+)") as policy,
        running((*PROXY, "--listen", str(listen), "--to", port, *shape), "(forwarding)"),
    ):
        robot = ("--robot", f"tcp://127.0.0.1:{listen}", "--policy", policy)
        rows.append(score(folder, "asynchronous over the network", args, *robot))
        rows.append(score(folder, "synchronous over the network", args, *robot, "--lockstep"))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", default=POLICY, help="by name or path")
    parser.add_argument("--splice", default="drop", help="how the bridge combines chunks that overlap")
    parser.add_argument("--delay-ms", type=float, default=20.0, help="of the network, each way")
    parser.add_argument("--jitter-ms", type=float, default=5.0)
    parser.add_argument("--loss", type=float, default=0.01, help="share of lost messages")
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--seed", type=int, default=10_000, help="of the first episode")
    parser.add_argument("--json", type=Path, help="write the rows there")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(args, Path(folder))
    for row in rows:
        low, high = row["interval_95"]
        print(f"{row['name']}: {row['successes']} of {row['episodes']}, 95 % interval {low:.0%} to {high:.0%}")
    if args.json:
        args.json.write_text(json.dumps({"rows": rows}, indent=2))


if __name__ == "__main__":
    main()
