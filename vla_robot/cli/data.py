"""`vla data WHAT`: look into datasets and convert them. Each module imports what it needs late."""

from __future__ import annotations

from typing import Annotated

import tyro

from vla_robot.cli import data_convert, data_inspect
from vla_robot.cli.data_convert import ConvertArgs
from vla_robot.cli.data_inspect import InspectArgs

DataArgs = (
    Annotated[InspectArgs, tyro.conf.subcommand("inspect")] | Annotated[ConvertArgs, tyro.conf.subcommand("convert")]
)


def main(args: InspectArgs | ConvertArgs) -> int:
    """Do one of them.

    Raises:
        VlaError: a dataset is damaged, or something must be said.
    """
    match args:
        case InspectArgs():
            return data_inspect.main(args)
        case ConvertArgs():
            return data_convert.main(args)
