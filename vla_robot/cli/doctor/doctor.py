"""`vla doctor`: checks whether this computer can run the package, and says how to fix what is missing.

Each check is a function that returns findings; add new ones to CHECKS. A check never raises: a failed check is a
finding too.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from rich.table import Table
from rich.text import Text

from vla_robot.cli.common.cli_common import EXIT_FAILED, option
from vla_robot.cli.common.terminal import Terminal, say
from vla_robot.cli.doctor.finding import Finding, Verdict
from vla_robot.core.errors import VlaError
from vla_robot.core.host.device_names import AUTO
from vla_robot.core.host.optional import installed
from vla_robot.core.host.provenance import available_cores
from vla_robot.recipe import available
from vla_robot.world.environments.location import Environment, find_environment, made_at, others_of

MIN_MEMORY_GB = 4.0
MIN_DISK_GB = 2.0
RENDER_TIMEOUT_S = 60.0
NO_GPU = "none"

_MARKS: dict[Verdict, str] = {"ok": "[green]ok[/]", "warn": "[yellow]warn[/]", "fail": "[bold red]fail[/]"}


@dataclass(frozen=True)
class DoctorArgs:
    """Check Python, packages, rendering, GPU, memory and disk; exit status 1 if something will not work."""

    robot: Annotated[str | None, option("ENV")] = None
    """check this real arm instead, by its recipe or its bridge's address; nothing is moved"""
    json: Annotated[Path | None, option("FILE")] = None
    """also write the findings to this file as JSON"""


def main(args: DoctorArgs) -> int:
    """Print a table of the findings, and the next step; status 1 if something must be fixed."""
    findings = _examine(args.robot)
    Terminal().print(_table(findings))
    if args.json:
        _write_json(args.json, findings)
    failed = [f for f in findings if f.verdict == "fail"]
    ready = (
        f"vla bridge {args.robot} --dry-run" if args.robot and "://" not in args.robot else "vla run launch/lift.toml"
    )
    say(f"\n{_advice(findings, ready)}")
    return EXIT_FAILED if failed else 0


def _examine(robot: str | None) -> list[Finding]:
    if robot is None:
        return examine()
    from vla_robot.cli.doctor.robot import examine_robot

    return examine_robot(robot)


def examine() -> list[Finding]:
    """Return all findings, in the order of CHECKS."""
    return [finding for check in CHECKS for finding in check()]


def check_python() -> Iterable[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] == (3, 12):
        yield Finding("Python", version)
    else:
        yield Finding("Python", version, "fail", "Python 3.12 is needed: `make setup` finds or explains it.")


def check_extras() -> Iterable[Finding]:
    """Return one finding per extra, with the packages that are missing."""
    for extra, packages in EXTRAS.items():
        versions = {package: installed(package) for package in packages}
        missing = [package for package, version in versions.items() if version is None]
        if missing:
            fix = f"`make setup`, or pip install 'vla_robot[{extra}]' to use {EXTRA_USES[extra]}."
            yield Finding(f"[{extra}]", f"missing: {', '.join(missing)}", "warn", fix)
        else:
            yield Finding(f"[{extra}]", ", ".join(f"{p} {v}" for p, v in versions.items()))


def check_clashes() -> Iterable[Finding]:
    """Return combinations of versions that install together and then fail; each was observed."""
    yield from [*_clashes()] or [Finding("version clashes", "none of the known ones")]


def check_plugins() -> Iterable[Finding]:
    """Return one finding per kind that another package adds."""
    from vla_robot.recipe.reading.schemas import installed_plugins

    for plugin in installed_plugins():
        name = f"plugin {plugin.group.rpartition('.')[2]}: {plugin.kind}"
        if plugin.problem:
            yield Finding(name, plugin.problem, "fail", f"Update or uninstall {plugin.distribution}.")
        else:
            yield Finding(name, f"{plugin.distribution}: {plugin.description}")


def check_environments() -> Iterable[Finding]:
    """Return one finding per environment of its own that worlds may run in; none of them is needed by the others."""
    for path in available("environments").values():
        try:
            yield _environment(find_environment(str(path)))
        except VlaError as error:
            yield Finding(f"environment {path.stem}", str(error), "fail", f"Correct or remove {path}.")


def check_rendering() -> Iterable[Finding]:
    """Render frames in a separate process: a broken GL driver kills the process that uses it."""
    if installed("mujoco") is None:
        return
    command = [sys.executable, "-m", "vla_robot.cli.doctor.render_probe"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=RENDER_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        yield Finding("rendering", f"no frame within {RENDER_TIMEOUT_S:g} s", "fail", _GL_FIX)
        return
    if done.returncode == 0:
        backend, frame_ms = done.stdout.split()[-2:]
        yield Finding("rendering", f"{backend}, {frame_ms} ms for a small frame")
    else:
        lines = done.stderr.strip().splitlines() or [f"the process ended with status {done.returncode}"]
        yield Finding("rendering", lines[-1], "fail", _GL_FIX)


def check_gpu() -> Iterable[Finding]:
    """Ask nvidia-smi for the GPU: it is ten times faster than importing torch, and works without it."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        yield Finding("GPU", f"{NO_GPU}; the small policies and the simulators run on the CPU")
        return
    yield Finding("GPU", "; ".join(done.stdout.strip().splitlines()))


def check_device() -> Iterable[Finding]:
    """Say which device `device = "auto"` of a recipe takes; a GPU that torch cannot use is a warning."""
    if installed("torch") is None:
        return
    from vla_robot.policy.device import device_in_words, multiplies_bfloat16, torch_device

    taken = torch_device(AUTO)
    idle = taken.type == "cpu" and any(not finding.seen.startswith(NO_GPU) for finding in check_gpu())
    fix = f"torch {installed('torch')} does not see the GPU: install a build with CUDA for this driver." if idle else ""
    slow = "" if multiplies_bfloat16(taken) else "; keep float32, bfloat16 is several times slower on this one"
    yield Finding('device "auto"', device_in_words(taken) + slow, "warn" if idle else "ok", fix)


def check_machine() -> Iterable[Finding]:
    cores = available_cores()
    fix = "World and policy share one core; episodes take about twice as long."
    yield Finding("CPU cores", str(cores)) if cores >= 2 else Finding("CPU cores", str(cores), "warn", fix)
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    verdict: Verdict = "ok" if memory_gb >= MIN_MEMORY_GB else "warn"
    fix = "" if verdict == "ok" else f"A world and a policy need about {MIN_MEMORY_GB:g} GB."
    yield Finding("memory", f"{memory_gb:.1f} GB", verdict, fix)


def check_disk() -> Iterable[Finding]:
    """Check free disk space, and that ./runs, which `vla run` writes to, is writable."""
    free_gb = shutil.disk_usage(Path.cwd()).free / 1e9
    verdict: Verdict = "ok" if free_gb >= MIN_DISK_GB else "warn"
    fix = "" if verdict == "ok" else "Recordings and checkpoints need more; remove old folders of runs/."
    yield Finding("free disk", f"{free_gb:.0f} GB", verdict, fix)
    target = Path("runs") if Path("runs").is_dir() else Path.cwd()
    try:
        with tempfile.TemporaryFile(dir=target):
            yield Finding("runs/ can be written", str(target.resolve()))
    except OSError as error:
        yield Finding("runs/ can be written", str(error), "fail", "Work in a folder of yours, or use --out FOLDER.")


CHECKS: tuple[Callable[[], Iterable[Finding]], ...] = (
    check_python,
    check_extras,
    check_clashes,
    check_plugins,
    check_environments,
    check_rendering,
    check_gpu,
    check_device,
    check_machine,
    check_disk,
)

EXTRAS: dict[str, tuple[str, ...]] = {
    "sim": ("mujoco", "robosuite", "mink", "gymnasium"),
    "policy": ("torch", "transformers", "timm", "safetensors", "tokenizers"),
    "edge": ("onnxruntime", "tokenizers"),
    "data": ("lerobot", "datasets", "pyarrow"),
    "learn": ("accelerate", "peft"),
    "report": ("av", "matplotlib"),
    "arm": ("lerobot", "feetech-servo-sdk", "pyserial"),
}

EXTRA_USES = {
    "sim": "a simulator",
    "policy": "a learned policy",
    "edge": "an exported policy, without torch",
    "data": "recording or reading datasets",
    "learn": "fine-tuning",
    "report": "videos and reports",
    "arm": "a real arm",
}

_GL_FIX = (
    "Without a display: sudo apt install libegl1 libgl1 (MUJOCO_GL=egl), or libosmesa6 and MUJOCO_GL=osmesa. "
    "In a container, give it those libraries too."
)


def _environment(environment: Environment) -> Finding:
    name, old = f"environment {environment.name}", others_of(environment)
    if environment.is_made:
        cleaning = f"An earlier one is left over: remove {old[0]}." if old else ""
        return Finding(name, f"{environment.folder}, of {made_at(environment)}", "ok", cleaning)
    if environment.folder.exists():
        return Finding(name, f"half-made: {environment.folder}", "warn", f"`{environment.command}` makes it whole.")
    return Finding(name, f"not installed; {environment.size}", "ok", f"`{environment.command}`, to use its worlds.")


def _clashes() -> Iterator[Finding]:
    mujoco, robosuite, transformers = _version("mujoco"), _version("robosuite"), _version("transformers")
    if _version("numpy") < (2,):
        yield _clash("numpy", "numpy", "lerobot needs numpy 2: uv pip install 'numpy>=2,<2.3'")
    if robosuite and mujoco and mujoco[:2] != (3, 3):
        fix = "robosuite 1.5.1 asserts on newer MuJoCo: uv pip install 'mujoco==3.3.*'"
        yield _clash("mujoco + robosuite", "mujoco", fix)
    if robosuite and robosuite != (1, 5, 1):
        fix = "1.5.2 pins mink 0.0.5, which wants numpy 1: uv pip install robosuite==1.5.1"
        yield _clash("robosuite", "robosuite", fix)
    if robosuite and _version("mink") >= (1,):
        yield _clash("mink + robosuite", "mink", "uv pip install 'mink<1'")
    if transformers and transformers < (5, 4):
        yield _clash("transformers", "transformers", "uv pip install 'transformers>=5.4,<6'")
    builds = [f"{n} {v}" for n in ("opencv-python", "opencv-python-headless") if (v := installed(n))]
    if len(builds) == 2:
        fix = (
            "Both own the folder cv2. Keep one: uv pip uninstall opencv-python, then reinstall opencv-python-headless."
        )
        yield Finding("OpenCV twice", " and ".join(builds), "warn", fix)


def _clash(name: str, package: str, fix: str) -> Finding:
    return Finding(name, str(installed(package)), "fail", fix)


def _version(distribution: str) -> tuple[int, ...]:
    """Return the leading numbers of an installed version; () if it is absent, which is below every version."""
    leading = re.match(r"\d+(\.\d+)*", installed(distribution) or "")
    return tuple(int(part) for part in leading.group().split(".")) if leading else ()


def _table(findings: Iterable[Finding]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("", "what", "seen", "fix"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        table.add_row(Text.from_markup(_MARKS[finding.verdict]), finding.name, finding.seen, finding.fix)
    return table


def _advice(findings: Iterable[Finding], ready: str) -> str:
    counts = {v: sum(f.verdict == v for f in findings) for v in ("fail", "warn")}
    if counts["fail"]:
        return f"{counts['fail']} must be fixed, {counts['warn']} warnings. Next: apply the fixes above."
    if counts["warn"]:
        return f"Everything needed works; {counts['warn']} warnings. Next: `{ready}`."
    return f"Everything works. Next: `{ready}`."


def _write_json(path: Path, findings: Iterable[Finding]) -> None:
    from vla_robot.cli.common.json_out import write_json

    write_json(path, "doctor", rows=[], findings=[vars(f) for f in findings])
