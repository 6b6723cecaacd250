"""Writes demonstrations as LeRobot datasets, version 3, with their embodiment.

`tables.py` stores the episodes. This module adds meta/embodiment.json, which a policy inherits, and
meta/recording.jsonl, by which an interrupted recording is continued.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_robot.core.embodiment import Embodiment
from vla_robot.core.errors import DataError
from vla_robot.core.host.closeable import Closeable
from vla_robot.core.host.durable import append_line, write_whole, writing
from vla_robot.data.demonstration import Demonstration
from vla_robot.data.formats.lerobot.layout import (
    ACTION,
    EMBODIMENT,
    EXECUTED,
    FRAME_STAMP,
    IMAGES,
    INTERVENTION,
    POLICY_ACTION,
    POLICY_ASKED,
    RECORDING,
    STAMP,
    STATE,
    STEP,
    SUCCESS,
    read_embodiment,
    read_recording,
    require_same_embodiment,
    write_json,
)
from vla_robot.data.formats.lerobot.tables import EpisodeTable, LeRobotTables, feature, image_feature
from vla_robot.data.pipeline.stats import describe_pixels


class LeRobotWriter(Closeable):
    """A writer of demonstrations, which syncs each to the disk before `write` returns.

    It continues a dataset that exists, and never overwrites one. Use it in a `with` block, or call `close`.
    """

    def __init__(self, root: Path) -> None:
        """
        Args:
            root: the dataset's folder; made when it is missing. All episodes must have the features of the first one.

        Raises:
            DataError: the folder holds other files, is damaged, or is being written by another process.
            MissingDependencyError: the extra [data] is not installed.
        """
        self._root = root
        self._embodiment: Embodiment | None = None
        self._recorded: set[tuple[int, str, str]] = set()
        self._tables = LeRobotTables(root)
        try:
            if self._tables.num_episodes:
                self._embodiment = read_embodiment(root)
                self._recorded = self._keep_notes_of(self._tables.num_episodes)
        except BaseException:
            self.close()
            raise

    @property
    def num_episodes(self) -> int:
        return self._tables.num_episodes

    @property
    def num_frames(self) -> int:
        return self._tables.num_frames

    @property
    def recorded(self) -> frozenset[tuple[int, str, str]]:
        """(seed, driver, world) of every stored episode; the world is empty where the dataset does not say it."""
        return frozenset(self._recorded)

    def has(self, seed: int, driver: str, world: str) -> bool:
        """Return whether an episode is stored, by which an interrupted recording is continued."""
        return not self._recorded.isdisjoint({(seed, driver, world), (seed, driver, "")})

    def write(self, demonstration: Demonstration) -> None:
        """Append one episode.

        Raises:
            DataError: the episode does not fit the dataset, or writing to disk failed.
        """
        table = _like(_table(demonstration), self._tables.features)
        if self._embodiment is not None:
            require_same_embodiment(self._root, self._embodiment, demonstration.embodiment)
        if self._embodiment is None:
            with writing(self._root / EMBODIMENT):
                write_json(self._root / EMBODIMENT, demonstration.embodiment.to_dict())
            self._embodiment = demonstration.embodiment
        embodiment = self._embodiment
        self._tables.write(table, embodiment.rate_hz, embodiment.name, lambda: self._note(demonstration))
        self._recorded.add((demonstration.seed, demonstration.driver, demonstration.world))

    def close(self) -> None:
        """Release the folder for other writers. May be called twice."""
        self._tables.close()

    def _keep_notes_of(self, num_episodes: int) -> set[tuple[int, str, str]]:
        """Remove lines of meta/recording.jsonl whose episode was not finished because of a crash. Return the rest."""
        notes = [note for note in read_recording(self._root) if note["episode"] < num_episodes]
        with writing(self._root / RECORDING):
            write_whole(self._root / RECORDING, "".join(json.dumps(note) + "\n" for note in notes).encode())
        return {(note["seed"], note["driver"], note.get("world", "")) for note in notes}

    def _note(self, d: Demonstration) -> None:
        line = {"episode": self.num_episodes, "seed": d.seed, "driver": d.driver, "success": d.succeeded}
        if d.world:
            line["world"] = d.world
        if d.corrections is not None:
            line["corrected_steps"] = int(d.corrections.intervention.sum())
        line |= d.facts
        append_line(self._root / RECORDING, json.dumps(line))


def features_of(demonstration: Demonstration) -> dict[str, Any]:
    """Return column -> LeRobot's description, without the counters.

    Raises:
        DataError: the demonstration's cameras or shapes are not those of its embodiment.
    """
    embodiment = demonstration.embodiment
    cameras = [camera.name for camera in embodiment.cameras]
    if sorted(demonstration.cameras) != sorted(cameras):
        raise DataError(
            f"a demonstration has the cameras {', '.join(sorted(demonstration.cameras)) or 'none'}, but the embodiment "
            f"'{embodiment.name}' has {', '.join(cameras) or 'none'}."
        )
    state, action = [dim.name for dim in embodiment.state], list(embodiment.action.names)
    _require_numbers(STATE, demonstration.states, (len(demonstration), len(state)))
    _require_numbers(ACTION, demonstration.actions, (len(demonstration), len(action)))
    _require_numbers(EXECUTED, demonstration.executed, (len(demonstration), len(action)))
    sizes = {name: (demonstration.cameras[name].height, demonstration.cameras[name].width) for name in cameras}
    return {IMAGES + name: image_feature(height, width) for name, (height, width) in sizes.items()} | {
        STATE: feature("float32", [len(state)], state),
        ACTION: feature("float32", [len(action)], action),
        EXECUTED: feature("float32", [len(action)], action),
        SUCCESS: feature("bool", [1]),
        STAMP: feature("int64", [1]),
        STEP: feature("int64", [1]),
        **{FRAME_STAMP + name: feature("int64", [1]) for name in cameras},
        **_correction_features(demonstration, action),
    }


def _correction_features(d: Demonstration, action: list[str]) -> dict[str, Any]:
    """Return the descriptions of the columns that only datasets with corrections have."""
    if d.corrections is None:
        return {}
    _require_numbers(POLICY_ACTION, d.corrections.policy_actions, (len(d), len(action)))
    return {
        INTERVENTION: feature("bool", [1]),
        POLICY_ACTION: feature("float32", [len(action)], action),
        POLICY_ASKED: feature("bool", [1]),
    }


def _correction_columns(d: Demonstration) -> dict[str, NDArray[Any]]:
    if d.corrections is None:
        return {}
    return {
        INTERVENTION: d.corrections.intervention,
        POLICY_ACTION: d.corrections.policy_actions.astype(np.float32),
        POLICY_ASKED: d.corrections.policy_asked,
    }


def _table(d: Demonstration) -> EpisodeTable:
    return EpisodeTable(
        features=features_of(d),
        columns={
            STATE: d.states.astype(np.float32),
            ACTION: d.actions.astype(np.float32),
            EXECUTED: d.executed.astype(np.float32),
            SUCCESS: d.success,
            STAMP: d.stamps_ns,
            STEP: d.steps,
            **{FRAME_STAMP + name: d.frame_stamps_ns.get(name, d.stamps_ns) for name in d.cameras},
            **_correction_columns(d),
        },
        images={IMAGES + name: camera.png for name, camera in d.cameras.items()},
        image_stats={IMAGES + name: describe_pixels(c.pixel_counts, len(c.png)) for name, c in d.cameras.items()},
        tasks=(d.instruction,) * len(d),
    )


def _like(table: EpisodeTable, there: Mapping[str, Any]) -> EpisodeTable:
    """Drop the columns of frames' stamps and steps' numbers when the continued dataset lacks them."""
    newer = {name for name in table.features if name == STEP or name.startswith(FRAME_STAMP)}
    drop = {name for name in newer if there and name not in there}
    if not drop:
        return table
    features = {name: value for name, value in table.features.items() if name not in drop}
    return replace(table, features=features, columns={n: c for n, c in table.columns.items() if n not in drop})


def _require_numbers(name: str, values: NDArray[np.float64], shape: tuple[int, int]) -> None:
    if values.shape != shape:
        raise DataError(f"{name} has shape {values.shape}, expected {shape}: steps x dimensions of the embodiment.")
    if not np.isfinite(values).all():
        raise DataError(
            f"{name} holds numbers that are not finite, in step {int(np.argwhere(~np.isfinite(values))[0, 0])}."
        )
