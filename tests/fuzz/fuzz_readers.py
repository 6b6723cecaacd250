"""Feeds every reader of files and bodies with neighbours of valid inputs, structure kept. By hand, as it takes minutes:

    .venv/bin/python tests/fuzz/fuzz_readers.py --reader hdf5 --inputs 200000

An input passes if it is read, or refused by an error of ours. Nothing else may come of it: no other exception, no more
memory than MAX_MEMORY_MB above the start, no more time than MAX_INPUT_S. Input number N is the same in every run;
`--only N` runs it alone, with its traceback. The tests run some hundred of each reader.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import functools
import importlib
import importlib.metadata
import math
import os
import random
import re
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # the tests are no package

from vla_robot.core.errors import VlaError

MAX_INPUT_S = 10.0
"""Of the processor."""
HANG_S = 300.0
"""By the clock; then the program ends with a traceback. An endless loop in a library cannot be ended otherwise."""
REARM_S = 5.0
"""The watchdog starts a thread each time, which takes longer than most inputs."""
MAX_MEMORY_MB = 1024
MOST_FAILURES = 20


class Run:
    """Inputs of one reader, and what came of them."""

    def __init__(self, reader: Any, seed: int) -> None:
        """
        Args:
            reader: one of readers.READERS.
            seed: of all inputs.
        """
        self._reader, self._seed = reader, seed
        self.outcomes: Counter[str] = Counter()
        self.failures: list[tuple[int, str]] = []
        self.slowest_s = self.grown_mb = 0.0
        self._before_mb = memory_mb("VmRSS")
        self._armed_s = -math.inf

    def input(self, number: int) -> Any:
        """The first inputs are the seeds themselves."""
        seeds = self._reader.seeds
        if number < len(seeds):
            return seeds[number]
        chance = random.Random(f"{self._reader.name} {self._seed} {number}")
        return self._reader.mutate(chance.choice(seeds), chance)

    def try_input(self, number: int) -> None:
        data = self.input(number)
        self._arm()
        started_s = time.process_time()  # how long it takes by the clock says how busy the computer is
        try:
            self._reader.read(data)
            outcome = "read"
        except VlaError as error:
            outcome = f"{type(error).__name__}: {kind(str(error))}"
            if not str(error).strip():
                self.failures.append((number, "an error without a word"))
        except Exception:
            outcome = "FAILED"
            self.failures.append((number, traceback.format_exc(limit=-3)))
        took_s = time.process_time() - started_s
        self.slowest_s = max(self.slowest_s, took_s)
        if took_s > MAX_INPUT_S and number >= len(self._reader.seeds):  # with the first ones libraries are loaded
            self.failures.append((number, f"it took {took_s:.0f} s"))
        self.outcomes[outcome] += 1
        self._weigh(number)

    def forget_peak(self) -> None:
        """Count the peak of memory from here."""
        Path("/proc/self/clear_refs").write_text("5")
        self._before_mb, self.grown_mb = memory_mb("VmRSS"), 0.0

    def _weigh(self, number: int) -> None:
        grown_mb = memory_mb("VmHWM") - self._before_mb
        self.grown_mb = max(self.grown_mb, grown_mb)
        if grown_mb > MAX_MEMORY_MB and number >= len(self._reader.seeds):
            self.failures.append((number, f"it took {grown_mb:.0f} MB"))
            Path("/proc/self/clear_refs").write_text("5")

    def _arm(self) -> None:
        now_s = time.monotonic()
        if now_s - self._armed_s > REARM_S:
            faulthandler.dump_traceback_later(HANG_S, exit=True, file=sys.stderr)
            self._armed_s = now_s


def kind(reason: str) -> str:
    """A reason without what differs from input to input."""
    return re.sub(r"/\S*|b?'.*?'|b?\".*?\"|\[.*?\]|-?\d[\d.e+-]*|there are .*|Available: .*", "*", reason)[:70]


def memory_mb(field: str) -> float:
    """VmHWM or VmRSS of this process."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(field)).split()[1]) / 1024


def fuzz(reader: Any, first: int, inputs: int, seed: int, folder: Path) -> bool:
    """Run the seeds and the inputs from one number to another, and print what came of them; whether all passed."""
    run, started_s = Run(reader, seed), time.monotonic()
    for number in range(min(len(reader.seeds), inputs)):  # caches fill, libraries load
        run.try_input(number)
    run.forget_peak()
    last = os.open(folder / f"{reader.name}.number", os.O_CREAT | os.O_WRONLY, 0o600)
    with contextlib.suppress(KeyboardInterrupt):  # what was tried until then is told
        for number in range(max(len(reader.seeds), first), inputs):
            os.pwrite(last, f"{number:12d}".encode(), 0)  # survives a crash of a library
            run.try_input(number)
            if len(run.failures) >= MOST_FAILURES:
                break
    faulthandler.cancel_dump_traceback_later()
    os.close(last)
    report(reader, run, time.monotonic() - started_s)
    return not run.failures


def report(reader: Any, run: Run, took_s: float) -> None:
    total = sum(run.outcomes.values())
    families = Counter[str]()
    for outcome, count in run.outcomes.items():
        families[outcome.partition(":")[0]] += count
    told = ", ".join(f"{name} {count}" for name, count in families.most_common())
    print(
        f"{reader.name}: {total} inputs, {told}; {len(run.outcomes)} different outcomes; "
        f"peak +{run.grown_mb:.0f} MB; slowest {run.slowest_s * 1e3:.0f} ms; {took_s:.0f} s",
        flush=True,
    )
    for number, what in {what.splitlines()[-1]: (number, what) for number, what in reversed(run.failures)}.values():
        print(f"  input {number}: {what}", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reader", action="append", metavar="NAME", help="which; may be repeated; all by default")
    parser.add_argument("--inputs", type=int, default=1000, metavar="N", help="of each reader")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="go on from this input behind the seeds")
    parser.add_argument("--seed", type=int, default=0, help="of the inputs")
    parser.add_argument("--only", type=int, metavar="N", help="run this input alone and show its traceback")
    options = parser.parse_args()
    errors = os.fdopen(os.dup(2), "w")
    faulthandler.enable(errors)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libpng, libjpeg and libtiff tell of each damaged picture
    sys.stderr = errors
    warnings.simplefilter("ignore")
    importlib.metadata.version = functools.cache(importlib.metadata.version)  # looked up for each video
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="fuzz_readers_", dir=shared if shared.is_dir() else None) as folder:
        readers = importlib.import_module("readers").readers(Path(folder))
        chosen = options.reader or list(readers)
        if unknown := [name for name in chosen if name not in readers]:
            sys.exit(f"unknown reader {', '.join(unknown)}; there are {', '.join(readers)}")
        if options.only is not None:
            reader = readers[chosen[0]]()
            data = Run(reader, options.seed).input(options.only)
            print(repr(data)[:3000])
            reader.read(data)
            return
        passed = [fuzz(readers[name](), options.first, options.inputs, options.seed, Path(folder)) for name in chosen]
    if not all(passed):
        sys.exit("some inputs did not pass")


if __name__ == "__main__":
    main()
