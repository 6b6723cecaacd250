"""What the fuzzer once found is refused still; the fuzzer itself runs by hand, see tests/fuzz/fuzz_wire.py."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path


def test_kept_inputs_and_their_neighbours_are_refused_or_read_in_bounded_time_and_memory(repository: Path) -> None:
    command = [sys.executable, str(repository / "tests" / "fuzz" / "fuzz_wire.py"), "--replay"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    said = re.match(r"(\d+) inputs", ended.stdout)
    assert said is not None
    assert int(said.group(1)) > 4000
