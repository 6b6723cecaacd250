"""What a stranger's file or a peer may not do: name a place outside, fill the memory, command a terminal."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from vla_robot.core.errors import ContractError, DataError, RecipeError
from vla_robot.core.untrusted import (
    MAX_JSON_BYTES,
    expand_template,
    malformed,
    parse_json,
    printable,
    read_file,
    read_json,
    require_inside,
    require_name,
)

V3 = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
V21 = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"


@pytest.mark.parametrize("name", ["bridge_orig", "fractal20220817_data", "1.0.0", "my data (2)", "größe", "a" * 128])
def test_plain_names_pass(name: str) -> None:
    assert require_name(name, "the dataset", "info.json") == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../x",
        "/etc",
        "a/b",
        "a\\b",
        ".hidden",
        "-rf",
        "a\nb",
        "a\x1b[2J",
        "a\0",
        "a" * 129,
        7,
        None,
        ["a"],
    ],
)
def test_a_name_that_could_leave_its_folder_is_refused(name: Any) -> None:
    with pytest.raises(DataError, match=r"info\.json: the name .* of the dataset is refused"):
        require_name(name, "the dataset", "info.json")


def test_the_published_templates_are_expanded() -> None:
    values = {"video_key": "observation.images.front", "chunk_index": 1, "file_index": 12}
    assert expand_template(V3, values, "info") == "videos/observation.images.front/chunk-001/file-012.mp4"
    assert expand_template(V21, {"episode_chunk": 0, "episode_index": 42}, "info") == (
        "data/chunk-000/episode_000042.parquet"
    )
    assert expand_template("{video_key}.mp4", {"video_key": "{chunk_index}"}, "info") == "{chunk_index}.mp4"


@pytest.mark.parametrize(
    "template",
    [
        "{video_key.__class__.__mro__}.mp4",
        "{video_key[0]}.mp4",
        "{chunk_index:999999999d}.mp4",
        "{chunk_index:>{file_index}}",
        "{chunk_index!r}",
        "{other}.mp4",
        "{video_key:03d}",
        "{0}",
        "{}",
        "{",
        "}",
        "{{video_key}}",
        "x" * 1000,
        None,
        5,
    ],
)
def test_any_other_template_is_refused(template: Any) -> None:
    with pytest.raises(DataError, match=r"^info: "):
        expand_template(template, {"video_key": "front", "chunk_index": 1, "file_index": 2}, "info")


def test_a_path_inside_is_kept_and_one_that_leaves_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "data"
    (root / "videos").mkdir(parents=True)
    assert require_inside(root, "videos/a.mp4") == root / "videos" / "a.mp4"
    for path in ("/etc/passwd", "../secret", "videos/../../secret", "a\0b"):
        with pytest.raises(DataError, match="is refused, since it leaves"):
            require_inside(root, path)


def test_links_are_followed_within_the_root_only(tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    (root / "real").write_text("x")
    (tmp_path / "secret").write_text("y")
    (root / "near").symlink_to("real")
    (root / "far").symlink_to(tmp_path / "secret")
    (root / "up").symlink_to("..")
    (tmp_path / "alias").symlink_to(root)
    assert require_inside(root, "near") == root / "near"
    assert require_inside(tmp_path / "alias", "near")  # the user named the root: it may be a link itself
    for path in ("far", "up/secret"):
        with pytest.raises(DataError, match=r"by a symbolic link: it leads to .*secret"):
            require_inside(root, path)


def test_a_snapshot_of_hugging_face_leads_to_its_own_blobs_alone(tmp_path: Path) -> None:
    snapshot = tmp_path / "datasets--lerobot--pusht" / "snapshots" / "abc"
    blobs = tmp_path / "datasets--lerobot--pusht" / "blobs"
    (snapshot / "meta").mkdir(parents=True)
    blobs.mkdir()
    (blobs / "1").write_text("{}")
    (tmp_path / "secret").write_text("y")
    (snapshot / "meta" / "info.json").symlink_to("../../../blobs/1")
    (snapshot / "meta" / "stats.json").symlink_to(tmp_path / "secret")
    assert require_inside(snapshot, "meta/info.json")
    with pytest.raises(DataError, match="symbolic link"):
        require_inside(snapshot, "meta/stats.json")


@pytest.mark.parametrize("text", [b"[" * 5000, b"1" * 5000, b'{"a": ', b"\xff", b"[" * 900_000, b""])
def test_json_that_cannot_be_read_is_our_error_with_the_file(text: bytes) -> None:
    with pytest.raises(RecipeError, match=r"^a\.json is not valid JSON"):
        parse_json(text, "a.json", RecipeError)


def test_json_beyond_the_limit_is_not_parsed() -> None:
    with pytest.raises(DataError, match="at most"):
        parse_json(b" " * (MAX_JSON_BYTES + 1), "a.json")


def test_only_regular_files_of_bounded_size_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"a": 1}))
    assert read_json(tmp_path / "a.json") == {"a": 1}
    with pytest.raises(DataError, match="has 8 bytes; at most 7"):
        read_file(tmp_path / "a.json", 7)
    os.mkfifo(tmp_path / "pipe")  # reading it would wait for a writer
    with pytest.raises(DataError, match="not a regular file"):
        read_json(tmp_path / "pipe")
    with pytest.raises(DataError, match="not a regular file"):
        read_file(Path("/dev/zero"), 100)


def test_a_folder_in_a_files_place_is_named_and_its_descriptor_closed(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    with pytest.raises(IsADirectoryError, match=tmp_path.name):
        read_file(tmp_path, 100)
    assert os.listdir("/proc/self/fd") == before


def test_unexpected_data_becomes_one_error_with_file_and_field() -> None:
    content: Any = {"fps": [1]}
    with (
        pytest.raises(DataError, match=r"^info\.json, fps is not of the expected form: TypeError"),
        malformed("info.json, fps"),
    ):
        float(content["fps"])
    with pytest.raises(DataError, match=r"^info\.json: the field 'shape' is missing"), malformed("info.json"):
        content["shape"]
    with pytest.raises(RecipeError, match="OverflowError"), malformed("a.toml", RecipeError):
        float(10**400)
    with pytest.raises(ContractError, match="as it is"), malformed("a.toml"):
        raise ContractError("as it is")
    with pytest.raises(OSError, match="disk"), malformed("a.toml"):  # not the data's fault
        raise OSError("disk")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("pick up the cube, größe 🤖", "pick up the cube, größe 🤖"),
        ("\x1b]0;owned\x07open", r"\x1b]0;owned\x07open"),
        ("a\x9b31mb", r"a\x9b31mb"),
        ("a\r\nb", r"a\r\nb"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("\ud800", r"\ud800"),
        ("tag\U000e0041", r"tag\U000e0041"),
    ],
)
def test_what_a_terminal_would_obey_is_shown_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown
    printable(text).encode()  # a terminal can print it


def test_a_message_of_several_lines_keeps_them() -> None:
    assert printable("one\n\ttwo\x1b", lines=True) == "one\n\ttwo\\x1b"
