"""Maps each format of datasets to the functions that recognise and open it. It is the only such list.

    format_at("data/mine")                   "lerobot", since it has a meta/info.json
    format_named("lerobot").open(...)        an EpisodeSource

The built-in formats come first, so that an installed package cannot take over a dataset that is read without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vla_robot.core.errors import DataError, RecipeError, in_words
from vla_robot.core.untrusted import printable
from vla_robot.data.formats.hdf5 import SUFFIXES, hdf5_files, open_hdf5
from vla_robot.data.formats.lerobot.layout import INFO
from vla_robot.data.formats.lerobot.source import open_lerobot
from vla_robot.data.formats.rlds.reader import is_rlds, open_rlds
from vla_robot.data.formats.storage import open_storage
from vla_robot.recipe.reading.formats import GROUP, DatasetFormat, format_names, format_plugin
from vla_robot.recipe.reading.plugins import plugin_names


def _is_lerobot(location: str) -> bool:
    path = open_storage(location).local
    return path is not None and (path / INFO).is_file()


def _is_rlds(location: str) -> bool:
    storage = open_storage(location)
    return (storage.local is None or storage.local.is_dir()) and is_rlds(storage)


def _is_hdf5(location: str) -> bool:
    path = open_storage(location).local
    if path is None or not path.is_dir():
        return path is not None and path.suffix in SUFFIXES and path.is_file()
    return bool(hdf5_files(path))


FORMATS: Mapping[str, DatasetFormat] = {
    "lerobot": DatasetFormat(
        "LeRobot: a folder with meta/info.json",
        _is_lerobot,
        lambda location, split, skip_corrupt, _: open_lerobot(_path(location), split, skip_corrupt=skip_corrupt),
    ),
    "rlds": DatasetFormat(
        "RLDS: a folder or URL with dataset_info.json, or with a folder 1.0.0 that has one",
        _is_rlds,
        lambda location, split, skip_corrupt, on_progress: open_rlds(
            location, split, skip_corrupt=skip_corrupt, on_progress=on_progress
        ),
    ),
    "hdf5": DatasetFormat(
        "robomimic: an HDF5 file, or a folder of them",
        _is_hdf5,
        lambda location, split, skip_corrupt, _: open_hdf5(_path(location), split, skip_corrupt=skip_corrupt),
    ),
}
"""Name -> format. The first format that recognises a dataset opens it."""


def format_named(name: str) -> DatasetFormat:
    """Return a format by its name.

    Raises:
        RecipeError: its plugin cannot be used; the message names the distribution.
    """
    return FORMATS[name] if name in FORMATS else format_plugin(name)


def format_at(location: str | Path) -> str:
    """Return the name of a dataset's format.

    Args:
        location: path or URL of the dataset.

    Raises:
        DataError: no format recognises it, or two plugins do; the message names plugins that cannot be used.
    """
    place = str(location)
    for name, known in FORMATS.items():
        if known.recognises(place):
            return name
    verdicts = {name: _asked(name, place) for name in format_names() if name not in FORMATS}
    found = [name for name, verdict in verdicts.items() if verdict is True]
    if len(found) > 1:
        owners = plugin_names(GROUP)
        formats = " and ".join(f"'{name}' ({owners[name]})" for name in found)
        raise DataError(f"{place} is recognised by the formats {formats}: uninstall all but one.")
    if not found:
        problems = [verdict for verdict in verdicts.values() if isinstance(verdict, str)]
        others = [name for name, verdict in verdicts.items() if verdict is False]
        raise DataError(" ".join([_unrecognised(place, others), *(f"Also: {problem}." for problem in problems)]))
    return found[0]


def _asked(name: str, place: str) -> bool | str:
    """Return whether a plugin's format recognises a dataset, or a message when the plugin fails."""
    try:
        known = format_plugin(name)
    except RecipeError as error:
        return str(error).rstrip(".")
    try:
        return bool(known.recognises(place))
    except Exception as error:  # code of another package may raise any error
        owner = plugin_names(GROUP)[name]
        return f"the plugin '{name}' of {owner} fails when it looks at {place}: {printable(in_words(error))}"


def _unrecognised(place: str, others: list[str]) -> str:
    storage = open_storage(place)
    plugins = f" nor of the format {' or '.join(others)}" if others else ""
    if storage.local is not None and not storage.local.is_dir():
        return f"{storage.local} does not exist, or is no dataset: expected a folder or a {SUFFIXES[0]} file."
    there = [*sorted(storage.files()), *storage.folders()][:8]
    return (
        f"{storage.location} is no dataset: neither RLDS (dataset_info.json, or a folder 1.0.0 with it) nor "
        f"LeRobot ({INFO}) nor HDF5 files{plugins}. It has: {', '.join(there) or 'nothing'}."
    )


def _path(location: str) -> Path:
    path = open_storage(location).local
    if path is None:
        raise DataError(f"{location} is a URL, and only RLDS datasets are read from one: copy it to the disk.")
    return path
