"""`vla data WHAT`: inspects and converts datasets, finds faults, makes questions and codecs. Imports are late."""

from __future__ import annotations

from typing import Annotated

import tyro

from vla_robot.cli.data import codecs as data_codecs
from vla_robot.cli.data import convert as data_convert
from vla_robot.cli.data import doctor as data_doctor
from vla_robot.cli.data import inspect as data_inspect
from vla_robot.cli.data import questions as data_questions
from vla_robot.cli.data import stats as data_stats
from vla_robot.cli.data.codecs import FastArgs, RarestArgs
from vla_robot.cli.data.convert import ConvertArgs
from vla_robot.cli.data.doctor import DataDoctorArgs
from vla_robot.cli.data.inspect import InspectArgs
from vla_robot.cli.data.questions import QuestionsArgs
from vla_robot.cli.data.stats import StatsArgs

DataArgs = (
    Annotated[InspectArgs, tyro.conf.subcommand("inspect")]
    | Annotated[ConvertArgs, tyro.conf.subcommand("convert")]
    | Annotated[StatsArgs, tyro.conf.subcommand("stats")]
    | Annotated[DataDoctorArgs, tyro.conf.subcommand("doctor")]
    | Annotated[QuestionsArgs, tyro.conf.subcommand("questions")]
    | Annotated[FastArgs, tyro.conf.subcommand("fast")]
    | Annotated[RarestArgs, tyro.conf.subcommand("rarest")]
)


def main(args: InspectArgs | ConvertArgs | StatsArgs | DataDoctorArgs | QuestionsArgs | FastArgs | RarestArgs) -> int:
    """Run the command of these arguments.

    Raises:
        VlaError: a dataset is damaged, or an option is needed.
    """
    match args:
        case InspectArgs():
            return data_inspect.main(args)
        case ConvertArgs():
            return data_convert.main(args)
        case StatsArgs():
            return data_stats.data_stats(args)
        case DataDoctorArgs():
            return data_doctor.data_doctor(args)
        case QuestionsArgs():
            return data_questions.data_questions(args)
        case FastArgs():
            return data_codecs.data_fast(args)
        case RarestArgs():
            return data_codecs.data_rarest(args)
