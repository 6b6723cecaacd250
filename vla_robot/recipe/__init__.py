"""Recipes: TOML files read strictly into frozen dataclasses; an error lists every problem with its nearest match.

from vla_robot.recipe import read
from vla_robot.recipe.env import EnvRecipe

recipe = read(EnvRecipe, "lift")              # by name, from envs/
recipe = read(EnvRecipe, "envs/lift.toml")    # by path
"""

from vla_robot.recipe.reading.dump import dump
from vla_robot.recipe.reading.find import KINDS, Kind, available, find, folder_of
from vla_robot.recipe.reading.formats import DatasetFormat
from vla_robot.recipe.reading.load import kind_of, parse, read, read_table
from vla_robot.recipe.reading.plugins import Plugin

__all__ = [
    "KINDS",
    "DatasetFormat",
    "Kind",
    "Plugin",
    "available",
    "dump",
    "find",
    "folder_of",
    "kind_of",
    "parse",
    "read",
    "read_table",
]
