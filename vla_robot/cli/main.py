"""The `vla` command: finds the verb, parses its options, prints our errors as one paragraph.

A verb's module is imported only when the verb is called, so that `vla --help` answers at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from vla_robot.cli.common.cli_common import EXIT_INTERRUPTED, EXIT_USER_ERROR
from vla_robot.cli.common.interrupt import interrupted_by_signals
from vla_robot.cli.common.renamed import with_new_words
from vla_robot.core.errors import VlaError, unknown
from vla_robot.core.host.console import SteadyStream, cannot_write, checked_output, steady_output
from vla_robot.core.host.durable import DISK_FAILURES, refusal
from vla_robot.core.untrusted import printable

DEBUG_VARIABLE = "VLA_DEBUG"

_ROOT = Path(__file__).resolve().parents[2]
"""The folder that holds the package: the clone of the repository, or where packages are installed."""


@dataclass(frozen=True)
class Verb:
    """One subcommand.

    Attributes:
        module: module with `main(arguments) -> int | None` and the arguments' dataclass.
        arguments: name of that dataclass; its fields are the options, its docstring the help.
        function: name of the entry function.
        goes_on: it holds an arm, serves, or runs for long: lost output must not end or delay it.
        in_clone: the module is in a clone of the repository beside the package, and is not installed with it.
    """

    module: str
    arguments: str
    function: str = "main"
    goes_on: bool = False
    in_clone: bool = False

    def load(self) -> ModuleType:
        """Import the verb's module.

        Raises:
            VlaError: it belongs to a clone of the repository, and this package was installed without one.
        """
        if self.in_clone:
            _search_clone(self.module.partition(".")[0])
        return import_module(self.module)


VERBS: dict[str, Verb] = {
    "run": Verb("vla_robot.cli.run.run", "RunArgs", goes_on=True),
    "bridge": Verb("vla_robot.cli.bridge", "BridgeArgs", goes_on=True),
    "view": Verb("vla_robot.cli.view.view", "ViewArgs", goes_on=True),
    "serve": Verb("vla_robot.cli.serve", "ServeArgs", goes_on=True),
    "record": Verb("vla_robot.cli.record.record", "RecordArgs", goes_on=True),
    "pretrain": Verb("vla_robot.cli.pretrain", "PretrainArgs", goes_on=True),
    "finetune": Verb("vla_robot.cli.finetune.finetune", "FinetuneArgs", goes_on=True),
    "ask": Verb("vla_robot.cli.ask.ask", "AskArgs"),
    "eval": Verb("vla_robot.cli.evaluate.evaluate", "EvaluateArgs", goes_on=True),
    "export": Verb("vla_robot.cli.export", "ExportArgs"),
    "list": Verb("vla_robot.cli.list_show_check", "ListArgs", "list_recipes"),
    "show": Verb("vla_robot.cli.list_show_check", "ShowArgs", "show_recipe"),
    "check": Verb("vla_robot.cli.list_show_check", "CheckArgs", "check_recipes"),
    "data": Verb("vla_robot.cli.data.data", "DataArgs"),
    "bench": Verb("benchmarks.bench", "BenchArgs", in_clone=True),
    "plan": Verb("vla_robot.cli.plan", "PlanArgs"),
    "keys": Verb("vla_robot.cli.keys", "KeysArgs"),
    "install": Verb("vla_robot.cli.install", "InstallArgs"),
    "doctor": Verb("vla_robot.cli.doctor.doctor", "DoctorArgs"),
}

HELP = """\
vla: put a vision-language-action policy on a robot.

  vla run launch/lift.toml                          closed-loop episodes: a policy drives a world, a report follows
  vla run --env lift --policy openvla_nano          the same, by options; --episodes, --seed, --json
  vla bridge envs/lift.toml                         serve a robot: its arm, clock, limits and e-stop
  vla run --robot tcp://127.0.0.1:5570 --policy openvla_nano
                                                    the same episodes, on the robot behind a bridge
  vla serve openvla_nano                            one policy for many robots: --policy tcp://127.0.0.1:5580
  vla view tcp://127.0.0.1:5570                     a running bridge in the browser, with its e-stop
  vla record --env envs/lift.toml --source expert --episodes 50 --out data/lift
                                                    demonstrations, as a LeRobot v3 dataset; --source keyboard: by you
  vla pretrain RECIPE --out FOLDER                  train a vision tower on pictures and captions
  vla finetune RECIPE --out FOLDER                  train a policy on demonstrations or a mixture; --lora-rank 32
  vla eval --env lift --policy A B                  success over many seeds, with intervals; --suite libero_spatial
  vla ask IMAGE "detect red cube" --policy FOLDER   what a policy sees, in words and boxes; --out PICTURE.png
  vla export onnx POLICY FOLDER                     a policy that runs without torch; `export lerobot`: for its tools

  vla data inspect PATH                             what is in a dataset: RLDS, LeRobot or robomimic HDF5
  vla data convert SRC DST --to lerobot             the same dataset in another format
  vla data doctor PATH                              what is wrong with it, and the fix; `stats` for normalisation
  vla bench policy                                  speed, next to a plain way to do the same; serve, loop, gpu ...
  vla plan POLICY --device h100 4090                which GPU holds a policy, and the floor of its time; no GPU needed

  vla list [envs | policies | datasets | launch | teleoperators | environments]
                                                    every recipe, and its path
  vla show RECIPE                                   one recipe, defaults and inherited keys included, explained
  vla check [RECIPE ...]                            are the recipes valid?
  vla install libero                                an environment of its own, for worlds whose packages do not fit here
  vla keys [new | allow | trust | revoke | list]    keys and allowed clients, for a network
  vla doctor                                        is this computer ready; what to fix if not

`vla VERB --help` lists a verb's options. A recipe is a TOML file: envs/ holds worlds, policies/ policies,
datasets/ datasets, launch/ runs and trainings, envs/teleoperators/ leader arms, envs/environments/ what `vla install`
makes. Name one by path or bare name. Every verb takes --json FILE for machines. Start with `vla run launch/lift.toml`.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; return the exit status: 0 fine, 1 a measured failure, 2 a mistake to fix, 130 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not (arguments and arguments[0] in VERBS and VERBS[arguments[0]].goes_on):
        with checked_output():
            return _status(arguments)
    with steady_output() as output:
        status = _status(arguments)
    return status or _lost_output(output)


def _status(arguments: list[str]) -> int:
    try:
        with interrupted_by_signals():
            return _dispatch(arguments)
    except VlaError as error:
        if os.environ.get(DEBUG_VARIABLE):
            raise
        _explain(error)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # `vla list | head`: the reader ended
        return EXIT_INTERRUPTED
    except OSError as error:
        if error.errno not in DISK_FAILURES or os.environ.get(DEBUG_VARIABLE):
            raise
        _explain(refusal(error.filename or "a file", error))  # raised by a library without a better message
        return EXIT_USER_ERROR


def _lost_output(output: SteadyStream | None) -> int:
    """Report lost lines if an error such as a full disk lost them; return the exit status."""
    if output is None or output.failure is None:
        return 0
    lost = f"{cannot_write('standard output', output.failure)} {output.lost} lines were lost; the rest was done."
    print(f"error: {lost}", file=sys.stderr)
    return EXIT_USER_ERROR


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if arguments[0] == "--version":
        from vla_robot.core.host.optional import installed

        print(f"vla_robot {installed('vla_robot')}")
        return 0
    name, *rest = arguments
    if name not in VERBS:
        raise VlaError(unknown("command", name, VERBS, "Run `vla --help`."))
    from vla_robot.cli.common.terminal import log_printably

    log_printably()
    verb = VERBS[name]
    _require_working_folder()
    module = verb.load()
    arguments_of_verb = parse_arguments(getattr(module, verb.arguments), name, with_new_words(name, rest))
    return getattr(module, verb.function)(arguments_of_verb) or 0


def _search_clone(folder: str) -> None:
    """Make a folder beside the package importable, before an installed package of the same name."""
    if not ((_ROOT / "pyproject.toml").is_file() and (_ROOT / folder).is_dir()):
        raise VlaError(
            f"{folder} run from a clone of the repository, and this vla_robot was installed without one (it lies in "
            f"{_ROOT}). Clone the repository, run `make setup` in it, and call the vla of its .venv/bin."
        )
    if sys.path[:1] != [str(_ROOT)]:
        sys.path.insert(0, str(_ROOT))


def _require_working_folder() -> None:
    """Raise VlaError without a working folder, which names of recipes and folders are relative to."""
    try:
        os.getcwd()
    except OSError as error:
        raise VlaError(f"the working folder is gone: {error.strerror}. `cd` to one that exists.") from error


def parse_arguments(schema: type, name: str, rest: list[str]) -> Any:
    """Return a verb's options as its dataclass; print the help or the mistake and exit if they cannot be parsed."""
    import tyro

    return tyro.cli(schema, prog=f"vla {name}", args=rest)


def _explain(error: VlaError) -> None:
    """Print the message on stderr, wrapped on a terminal and in one line in a pipe."""
    from rich.text import Text

    from vla_robot.cli.common.terminal import Terminal

    console = Terminal(stderr=True)
    text = Text.assemble(("error: ", "bold red"), printable(error, lines=True))
    console.print(text, soft_wrap=not console.is_terminal)


if __name__ == "__main__":
    sys.exit(main())
