"""Commands of `vla`, each in a fork of one process that has imported what they need: sooner than an interpreter starts.

usage: forked_vla.py MODULE ..; each line of its input is a command as JSON, each line of its output an exit status
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self


class ForkedVla:
    """`with ForkedVla(modules) as vla: vla(words, folder, variables)` runs a command line, and again.

    A command has its working folder, variables of the environment, output, and the folders of PYTHONPATH before those
    of this process; the modules were imported without these.
    """

    def __init__(self, modules: Sequence[str], folder: Path) -> None:
        """
        Args:
            modules: what is imported before the first command.
            folder: for files of output, which the commands do not see.
        """
        self._modules, self._folder, self._count = modules, folder, 0

    def __enter__(self) -> Self:
        command = [sys.executable, __file__, *self._modules]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.communicate()

    def __call__(
        self, words: Sequence[str], folder: Path, variables: Mapping[str, str]
    ) -> subprocess.CompletedProcess[str]:
        self._count += 1
        out, err = (self._folder / f"{self._count}.{name}" for name in ("out", "err"))
        order = {"words": words, "folder": str(folder), "variables": variables, "out": str(out), "err": str(err)}
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps(order), file=self._process.stdin, flush=True)
        status = int(self._process.stdout.readline())
        return subprocess.CompletedProcess([*words], status, out.read_text(), err.read_text())


def _obey(order: Mapping[str, Any]) -> int:
    """Run a command in this process, which ends with it."""
    from vla_robot.cli.main import main

    for descriptor, path in ((1, order["out"]), (2, order["err"])):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(order["folder"])
    os.environ.update(order["variables"])
    sys.path[:0] = order["variables"].get("PYTHONPATH", "").split(os.pathsep)
    sys.argv = ["vla", *order["words"]]
    try:
        return main()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


if __name__ == "__main__":
    for name in sys.argv[1:]:
        importlib.import_module(name)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            os._exit(_obey(json.loads(line)))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
