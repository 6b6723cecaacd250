"""Statistics and conversions by many tasks at once: the same bits as by one, in whatever order they end."""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vla_robot.cluster.local import LocalRunner
from vla_robot.core.episode import Episode
from vla_robot.core.errors import DataError
from vla_robot.core.ports import EpisodeSource
from vla_robot.core.ports.tasks import Resources
from vla_robot.data.formats import storage
from vla_robot.data.formats.conversion_metadata import Options
from vla_robot.data.formats.lerobot.convert import to_lerobot
from vla_robot.data.formats.lerobot.convert_tasks import to_lerobot_by_tasks
from vla_robot.data.formats.lerobot.layout import read_episode_rows
from vla_robot.data.formats.pieces import pieces_of
from vla_robot.data.formats.rlds import convert_shards
from vla_robot.data.formats.rlds.convert import to_rlds
from vla_robot.data.formats.rlds.convert_shards import to_rlds_shards
from vla_robot.data.formats.rlds.reader import open_rlds
from vla_robot.data.formats.rlds.splits import INFO_FILE
from vla_robot.data.pipeline import step_parts
from vla_robot.data.pipeline.steps import step_table
from vla_robot.recipe.oxe import SourceRecipe
from vla_robot.testing import ToySource

RECIPE = SourceRecipe("source", ("action", "observation/state", "action"), state=("observation/state",))


class Threads(LocalRunner):
    """So many workers in this process, whatever its cores."""

    def most_workers(self, needs: Resources) -> int:
        return self._most


class Elsewhere(Threads):
    """A runner whose tasks count as run elsewhere: parts stay where a command that is started again finds them."""

    is_here = False  # pyright: ignore[reportAssignmentType]


def no_progress(done: int, total: int) -> None:
    pass


def toy(episodes: int) -> ToySource:
    return ToySource([2 + k % 5 for k in range(episodes)], instruction="lift it")


def made_by(runner: LocalRunner, parts: Sequence[EpisodeSource], cache: Path) -> Path:
    """Return the folder of a table."""
    folder = step_table("toy", RECIPE, parts, cache, runner=runner).folder
    assert folder is not None
    return folder


def table_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def require_same_episodes(ours: EpisodeSource, theirs: EpisodeSource) -> None:
    assert ours.lengths.tolist() == theirs.lengths.tolist()
    for index in range(len(theirs)):
        here, there = ours.episode(index), theirs.episode(index)
        for name in ("action", "observation/state"):
            np.testing.assert_array_equal(here.numbers(name), there.numbers(name), strict=True)
        assert here.frames("observation/front").encoded(1) == there.frames("observation/front").encoded(1)
        assert here.texts("language_instruction") == there.texts("language_instruction")


def test_eight_tasks_make_the_table_of_one_bit_for_bit(tmp_path: Path) -> None:
    converted = to_rlds_shards(toy(40), str(tmp_path / "toy"), Options(), Threads(1), shard_bytes=1)
    assert converted.new == 40
    source = open_rlds(tmp_path / "toy")
    assert len(pieces_of(source, step_parts.MOST_STEPS)) == 40  # a shard each
    one, eight = (made_by(Threads(count), [source], tmp_path / str(count)) for count in (1, 8))
    assert table_bytes(one) == table_bytes(eight)
    assert [path.name for path in eight.parent.iterdir()] == [eight.name]  # no part is left over


def test_quantiles_are_numpys_over_all_steps_of_all_shards(tmp_path: Path) -> None:
    to_rlds_shards(toy(11), str(tmp_path / "toy"), Options(), Threads(1), shard_bytes=1)
    source = open_rlds(tmp_path / "toy")
    block = step_table("toy", RECIPE, [source], tmp_path / "cache", runner=Threads(8)).statistics["action"]
    steps = np.concatenate([source.episode(k).numbers("action") for k in range(11)])
    assert block["q01"][:2] == np.quantile(steps.astype(np.float64), 0.01, axis=0).tolist()
    assert block["q99"][:2] == np.quantile(steps.astype(np.float64), 0.99, axis=0).tolist()


def test_statistics_that_were_killed_go_on_with_the_parts_that_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    to_rlds_shards(toy(12), str(tmp_path / "toy"), Options(), Threads(1), shard_bytes=1)
    source = open_rlds(tmp_path / "toy")
    whole = made_by(Threads(1), [source], tmp_path / "whole")
    real, read = step_parts.standardise, list[int]()

    def killed_at_the_seventh(recipe: SourceRecipe, episode: Any) -> Any:
        read.append(episode.index)
        if len(read) == 7:
            raise KeyboardInterrupt
        return real(recipe, episode)

    monkeypatch.setattr(step_parts, "standardise", killed_at_the_seventh)
    with pytest.raises(KeyboardInterrupt):
        step_table("toy", RECIPE, [source], tmp_path / "cache", runner=Elsewhere(1))
    first = len(read)
    made = made_by(Elsewhere(1), [source], tmp_path / "cache")
    assert len(read) - first < 12, "parts that were there are not computed again"
    assert table_bytes(made) == table_bytes(whole)


@pytest.mark.parametrize("place", ["folder", "memory", "local"])
def test_a_conversion_by_tasks_holds_what_one_process_writes(place: str, tmp_path: Path) -> None:
    """memory:// and local:// are fsspec's: the second is a disk behind a URL."""
    destination = {
        "folder": str(tmp_path / "mine"),
        "memory": f"memory://{tmp_path.name}/mine",
        "local": f"local://{tmp_path}/mine",
    }[place]
    source = toy(9)
    alone = to_rlds(source, tmp_path / "alone" / "mine", Options(), no_progress)
    seen: list[tuple[int, int]] = []
    converted = to_rlds_shards(
        source, destination, Options(), Threads(3), lambda done, total: seen.append((done, total)), shard_bytes=2000
    )
    assert (converted.new, converted.lost) == (9, alone.lost) and seen[-1] == (9, 9)
    ours = open_rlds(destination, cache=tmp_path / "index")
    require_same_episodes(ours, open_rlds(tmp_path / "alone" / "mine"))
    assert 1 < len(pieces_of(ours, 10**9)) < 9
    again = to_rlds_shards(source, destination, Options(), Threads(3), shard_bytes=2000)
    assert (again.episodes, again.new) == (9, 0)
    with pytest.raises(DataError, match="holds another conversion"):
        to_rlds_shards(toy(8), destination, Options(), Threads(3))


def test_a_killed_conversion_writes_only_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, folder = toy(10), tmp_path / "mine" / "1.0.0"
    encode, written, lock = convert_shards.encode_episode, list[int](), threading.Lock()

    def killed_at_the_sixth(episode: Any, features: Any) -> bytes:
        with lock:
            written.append(episode.index)
        if len(written) == 6:
            raise KeyboardInterrupt
        return encode(episode, features)

    monkeypatch.setattr(convert_shards, "encode_episode", killed_at_the_sixth)
    with pytest.raises(KeyboardInterrupt):
        to_rlds_shards(source, str(tmp_path / "mine"), Options(), Threads(1), shard_bytes=1)
    there = {path.name for path in folder.glob("*.tfrecord-*")}
    assert 0 < len(there) < 10 and not (folder / INFO_FILE).exists()
    assert all("-of-00010" in name for name in there), "a shard that is not whole has no name"
    with pytest.raises(DataError, match=r"shards of 'train' that `--cluster` wrote"):
        to_rlds(source, tmp_path / "mine", Options(), no_progress)
    converted = to_rlds_shards(source, str(tmp_path / "mine"), Options(), Threads(1), shard_bytes=1)
    assert converted.new == 10 - len(there)
    require_same_episodes(open_rlds(tmp_path / "mine"), source_as_rlds(source, tmp_path / "alone"))


def source_as_rlds(source: ToySource, folder: Path) -> EpisodeSource:
    to_rlds(source, folder / "mine", Options(), no_progress)
    return open_rlds(folder / "mine")


def test_a_conversion_without_tasks_is_not_continued_with_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = toy(3)

    def killed(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        to_rlds(source, tmp_path / "mine", Options(), killed)
    with pytest.raises(DataError, match="Continue it without --cluster"):
        to_rlds_shards(source, str(tmp_path / "mine"), Options(), Threads(1))


@dataclass(frozen=True)
class Instructed(ToySource):
    """Each episode has one of three instructions, the third one late."""

    def episode(self, index: int, fields: Collection[str] | None = None) -> Episode:
        found = super().episode(index, fields)
        task = ("lift it", "drop it", "turn it")[2 if index > 4 else index % 2]
        return replace(found, steps={**found.steps, "language_instruction": (task,) * len(found)})


INSTRUCTED = Instructed([2 + k % 5 for k in range(9)])


def files_in(folder: Path) -> dict[str, bytes]:
    """A dataset's files, without the lock."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


def test_lerobot_by_tasks_has_the_bytes_of_one_process(tmp_path: Path) -> None:
    alone = to_lerobot(INSTRUCTED, tmp_path / "alone", Options(), no_progress)
    seen: list[tuple[int, int]] = []
    converted = to_lerobot_by_tasks(
        INSTRUCTED, tmp_path / "tasks", Options(), Threads(3), lambda *done: seen.append(done), piece_steps=6
    )
    assert converted == alone and seen == [(done, 9) for done in range(1, 10)]
    assert files_in(tmp_path / "tasks") == files_in(tmp_path / "alone")
    again = to_lerobot_by_tasks(INSTRUCTED, tmp_path / "tasks", Options(), Threads(3))
    assert (again.episodes, again.new) == (9, 0)
    with pytest.raises(DataError, match="holds another conversion"):
        to_lerobot_by_tasks(toy(8), tmp_path / "tasks", Options(), Threads(3))


def killed_at_the_fourth(done: int, total: int) -> None:
    if done == 4:
        raise KeyboardInterrupt


def assert_same_dataset(mine: Path, alone: Path) -> None:
    """The same bytes, and the same rows of episodes: a conversion that went on has them in other files."""
    ours, theirs = (
        {name: content for name, content in files_in(folder).items() if "meta/episodes/" not in name}
        for folder in (mine, alone)
    )
    assert ours == theirs
    columns = ["episode_index", "tasks", "length", "dataset_from_index", "stats/action/mean"]
    assert read_episode_rows(mine, columns) == read_episode_rows(alone, columns)


@pytest.mark.parametrize("goes_on", ["tasks", "one process"])
def test_a_killed_conversion_to_lerobot_goes_on(goes_on: str, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        to_lerobot_by_tasks(INSTRUCTED, tmp_path / "mine", Options(), Threads(2), killed_at_the_fourth, piece_steps=6)
    if goes_on == "tasks":
        converted = to_lerobot_by_tasks(INSTRUCTED, tmp_path / "mine", Options(), Threads(2), piece_steps=6)
    else:
        converted = to_lerobot(INSTRUCTED, tmp_path / "mine", Options(), no_progress)
    assert (converted.new, converted.episodes) == (5, 9)
    to_lerobot(INSTRUCTED, tmp_path / "alone", Options(), no_progress)
    assert_same_dataset(tmp_path / "mine", tmp_path / "alone")


@pytest.mark.parametrize("protocol", ["memory", "local"])
def test_lerobot_behind_a_url_has_the_bytes_of_a_folder_and_appears_when_it_is_whole(
    protocol: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsspec = pytest.importorskip("fsspec")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    place = f"{tmp_path}/there" if protocol == "local" else f"/{tmp_path.name}/there"
    system, url = fsspec.filesystem(protocol), f"{protocol}://{place}"

    with pytest.raises(KeyboardInterrupt):
        to_lerobot_by_tasks(INSTRUCTED, url, Options(), Threads(2), killed_at_the_fourth, piece_steps=6)
    assert not system.exists(f"{place}/meta/info.json")
    converted = to_lerobot_by_tasks(INSTRUCTED, url, Options(), Threads(2), piece_steps=6)
    assert (converted.new, converted.episodes) == (5, 9)
    to_lerobot(INSTRUCTED, tmp_path / "alone", Options(), no_progress)
    system.get(place, str(tmp_path / "copy"), recursive=True)
    assert_same_dataset(tmp_path / "copy", tmp_path / "alone")
    assert not any((tmp_path / "cache").rglob("*.json"))
    again = to_lerobot_by_tasks(INSTRUCTED, url, Options(), Threads(2))
    assert (again.episodes, again.new) == (9, 0)
    with pytest.raises(DataError, match="holds another conversion"):
        to_lerobot_by_tasks(toy(8), url, Options(), Threads(2))


def test_data_files_that_disappeared_behind_a_url_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def killed(done: int, total: int) -> None:
        raise KeyboardInterrupt

    url = f"local://{tmp_path}/there"
    with pytest.raises(KeyboardInterrupt):
        to_lerobot_by_tasks(INSTRUCTED, url, Options(), Threads(1), killed, piece_steps=6)
    (tmp_path / "there" / "data" / "chunk-000" / "file-000.parquet").unlink()
    with pytest.raises(DataError, match=r"data files of 1 episodes disappeared, first 0\. Delete .*cache"):
        to_lerobot_by_tasks(INSTRUCTED, url, Options(), Threads(1), piece_steps=6)
    assert not (tmp_path / "there" / "meta" / "info.json").exists()


@pytest.mark.parametrize("name", ["../out", "a/b", "", ".hidden", "/tmp/x"])
def test_no_name_leaves_the_folder_that_is_written(name: str, tmp_path: Path) -> None:
    for folder in (storage.open_storage(tmp_path / "in"), storage.open_storage(f"memory://{tmp_path.name}/in")):
        with pytest.raises(DataError, match="is refused"), folder.writing(name) as file:
            file.write(b"x")


def test_a_file_that_fails_in_the_middle_does_not_appear(tmp_path: Path) -> None:
    for folder in (
        storage.open_storage(tmp_path / "in"),
        storage.open_storage(f"memory://{tmp_path.name}/in"),
        storage.open_storage(f"local://{tmp_path}/there"),
    ):
        with folder.writing("good") as file:
            file.write(b"x")
        with pytest.raises(ZeroDivisionError), folder.writing("bad") as file:
            file.write(b"x")
            raise ZeroDivisionError
        assert list(folder.files()) == ["good"], folder.location


def test_pieces_are_cut_at_shards_and_at_steps_and_survive_pickling(tmp_path: Path) -> None:
    import pickle

    to_rlds_shards(toy(10), str(tmp_path / "toy"), Options(), Threads(1), shard_bytes=2000)
    source = open_rlds(tmp_path / "toy", "train[2:9]")
    pieces = pieces_of(source, 7)
    assert [k for piece in pieces for k in range(piece.start, piece.stop)] == list(range(7))
    (tmp_path / "toy" / "1.0.0" / ".vla_index" / "train.index").unlink()
    for piece in map(pickle.loads, map(pickle.dumps, pieces)):
        assert piece.source.lengths.tolist() == source.lengths[piece.start : piece.stop].tolist()
        assert sum(piece.source.lengths) <= 7
        for whole, local in piece.episodes():
            np.testing.assert_array_equal(
                piece.source.episode(local).numbers("action"), source.episode(whole).numbers("action")
            )
            assert piece.source.encoded(local, "observation/front", 1) == source.encoded(whole, "observation/front", 1)
    assert not (tmp_path / "toy" / "1.0.0" / ".vla_index" / "train.index").exists(), "no index was made again"
