"""Every reader refuses or reads the neighbours of valid inputs; many more of them run by hand, see fuzz_readers.py."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

INPUTS = 250
READERS = 19


def test_neighbours_of_valid_files_and_bodies_are_read_or_refused_by_an_error_of_ours(repository: Path) -> None:
    command = [sys.executable, str(repository / "tests" / "fuzz" / "fuzz_readers.py"), "--inputs", str(INPUTS)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    tried = re.findall(rf"^(\w+): {INPUTS} inputs, .*peak \+\d+ MB", ended.stdout, re.MULTILINE)
    assert len(set(tried)) == READERS
