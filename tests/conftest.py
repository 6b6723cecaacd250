"""What every test shares."""

from __future__ import annotations

import os

# Before anything imports torch: the cores are shared by worlds, policies and pytest's own workers. Two threads of torch
# spin while one waits for the other; on a busy computer a test then takes a hundred times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import contextlib
import itertools
import resource
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from playwright.sync_api import Browser

TOGETHER = (
    ("tests/policy/lerobot/", "tests/test_lerobot_plugin.py"),
    ("tests/policy/onnx/",),
    ("tests/policy/openvla/",),
    ("tests/policy/vla/",),
    ("tests/policy/vlm/",),
)
"""Files that one process of pytest-xdist runs: models that are made once in a session, and imports that take seconds.
"""


# The tests start more than a hundred processes. Where the environment forbids bytecode, each of them compiles torch,
# robosuite and lerobot from source, which takes longer than most tests.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# A shell that runs the tests in the background, and nohup, have these ignored, and every process that a test starts
# would inherit that.
for _number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, signal.default_int_handler if _number == signal.SIGINT else signal.SIG_DFL)

# How long an example takes says how busy the computer is.
settings.register_profile("shared cores", deadline=None)
settings.load_profile("shared cores")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--cpu-times", action="store_true", help="print the CPU seconds of each folder and of the whole")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--cpu-times"):
        config.pluginmanager.register(CpuTimes())


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Distribute files as `--dist=loadfile` does, but those of TOGETHER to one process."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler.loadfile import LoadFileScheduling

    class Together(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return next((names[0] for names in TOGETHER if nodeid.startswith(names)), super()._split_scope(nodeid))

    return Together(config, log)


class CpuTimes:
    """The CPU seconds that tests take, with those of the processes that they start and wait for.

    Unlike seconds on the clock they say nearly the same on a computer that others use.
    """

    def __init__(self) -> None:
        self._so_far_s = 0.0

    @staticmethod
    def _spent_s() -> float:
        return sum(os.times()[:4])

    def pytest_collection_finish(self) -> None:
        self._so_far_s = self._spent_s()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        before, self._so_far_s = self._so_far_s, self._spent_s()
        report.user_properties.append(("cpu_s", self._so_far_s - before))
        return report

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        folders: dict[str, float] = {}
        for report in itertools.chain(*terminalreporter.stats.values()):
            for name, seconds in getattr(report, "user_properties", ()):
                if name == "cpu_s":
                    folder = "/".join(report.nodeid.split("::")[0].split("/")[:2])
                    folders[folder] = folders.get(folder, 0.0) + seconds
        whole = self._spent_s()  # pytest-xdist has waited for its workers
        folders["(start and collection)"] = whole - sum(folders.values())
        terminalreporter.section("CPU seconds")
        for folder, seconds in sorted(folders.items(), key=lambda entry: -entry[1]):
            terminalreporter.write_line(f"{seconds:8.1f}  {folder}")
        terminalreporter.write_line(f"{whole:8.1f}  in all")


@pytest.fixture
def repository() -> Path:
    """The checkout that holds envs/, policies/, datasets/ and launch/."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The Chromium that is installed."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no Chromium here; `apt-get install chromium` brings one")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield started
        started.close()


class PowerCut:
    """A disk that may lose its power: it keeps of a file what was in it at its last fsync, and of a folder the names
    that were in it at its own. It is stricter than any real one."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self._contents: dict[tuple[int, int], bytes] = {}
        self._names: dict[tuple[int, int], dict[str, tuple[int, int]]] = {}
        self._kept_open: list[int] = []
        self._fsync, self._replace = os.fsync, os.replace

    def fsync(self, descriptor: int) -> None:
        """In the place of os.fsync."""
        self._fsync(descriptor)
        status, path = os.fstat(descriptor), Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        key = (status.st_dev, status.st_ino)
        self._kept_open.append(os.dup(descriptor))  # so that no other file gets its number
        if stat.S_ISDIR(status.st_mode):
            self.calls.append(f"fsync {path.name}/")
            self._names[key] = {p.name: (p.lstat().st_dev, p.lstat().st_ino) for p in path.iterdir()}
        else:
            self.calls.append(f"fsync {path.name} ({status.st_size})")
            self._contents[key] = Path(f"/proc/self/fd/{descriptor}").read_bytes()

    def replace(self, source: str | Path, target: str | Path) -> None:
        """In the place of os.replace."""
        self.calls.append(f"rename {Path(source).name} {Path(target).name}")
        self._replace(source, target)

    def survivors(self, root: Path) -> dict[str, bytes]:
        """The files below a folder that was there before, by path, if the power were cut now."""
        status = root.stat()
        return dict(self._below((status.st_dev, status.st_ino), ""))

    def _below(self, folder: tuple[int, int], prefix: str) -> Iterator[tuple[str, bytes]]:
        for name, key in self._names.get(folder, {}).items():
            if key in self._names:
                yield from self._below(key, f"{prefix}{name}/")
            else:
                yield prefix + name, self._contents.get(key, b"")

    def close(self) -> None:
        for descriptor in self._kept_open:
            os.close(descriptor)


@pytest.fixture
def power_cut(monkeypatch: pytest.MonkeyPatch) -> Iterator[PowerCut]:
    """Records what is forced to the disk in the course of a test, and in what order."""
    disk = PowerCut()
    monkeypatch.setattr(os, "fsync", disk.fsync)
    monkeypatch.setattr(os, "replace", disk.replace)
    yield disk
    monkeypatch.undo()
    disk.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """`small_disk(kilobytes)` mounts a file system of that size, which fills up in earnest."""
    mounted: list[Path] = []

    def mount(kilobytes: int) -> Path:
        folder = tmp_path / f"disk_{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "none", str(folder)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("mounting a small disk takes the rights of root")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextlib.contextmanager
def no_file_longer_than(num_bytes: int) -> Generator[None]:
    """The system refuses longer files in this process: what a full disk does, without the rights to mount one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def file_limit() -> Callable[[int], contextlib.AbstractContextManager[None]]:
    """`with file_limit(bytes):`, see `no_file_longer_than`."""
    return no_file_longer_than


@pytest.fixture
def lerobot_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """lerobot's dataset class, with its caches in the test's own folder and no way to the network.

    To import lerobot takes up to half a minute.
    """
    datasets = pytest.importorskip("datasets")
    module = pytest.importorskip("lerobot.datasets.lerobot_dataset")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return module.LeRobotDataset


@contextlib.contextmanager
def open_connections(port: int, count: int = 1, says: bytes = b"") -> Generator[list[socket.socket]]:
    """TCP connections to a server of this computer that send this, or nothing, and then are silent.

    The server may hang up on any of them, at any time. This process may open as many files as that takes.
    """
    from vla_robot.transport.connections import raise_file_limit

    raise_file_limit()
    with contextlib.ExitStack() as stack:
        opened: list[socket.socket] = []
        for _ in range(count):
            opened.append(stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=120)))
            with contextlib.suppress(OSError):
                opened[-1].sendall(says)
        yield opened


@pytest.fixture
def silent() -> Callable[..., contextlib.AbstractContextManager[list[socket.socket]]]:
    """`with silent(port, count, says):`, see `open_connections`."""
    return open_connections


@pytest.fixture
def small_tabletop(tmp_path: Path, repository: Path) -> Callable[..., Path]:
    """`small_tabletop(cameras, horizon)` writes a recipe of the tabletop that starts in a second.

    Its cameras, "front" by default, give 32 x 32 pixels; without any nothing is rendered.
    """

    def write(cameras: Sequence[str] = ("front",), horizon: int | None = None) -> Path:
        lines = ['base = "tabletop"', f'scene = "{repository}/envs/tabletop.xml"']
        lines += [] if horizon is None else [f"horizon = {horizon}"]
        lines += [] if cameras else ["cameras = []"]
        for name in cameras:
            lines += ["[[cameras]]", f'name = "{name}"', "pos = [1.05, 0.0, 0.42]", "target = [0.44, 0.0, 0.085]"]
            lines += ["height = 32", "width = 32"]
        path = tmp_path / "small.toml"
        path.write_text("\n".join(lines) + "\n")
        return path

    return write
