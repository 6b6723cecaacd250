"""`vla data inspect` and `vla data convert`, end to end on small datasets that TensorFlow Datasets wrote."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from vla_robot.cli.common.cli_common import EXIT_INTERRUPTED, EXIT_USER_ERROR
from vla_robot.cli.common.progress import PLAIN_LINE_EVERY_S, Bar
from vla_robot.cli.common.terminal import Terminal
from vla_robot.cli.data import convert as data_convert
from vla_robot.cli.main import main
from vla_robot.data.formats.open import open_source
from vla_robot.data.summary import contact_sheet, spread, summarise


@pytest.fixture
def bridge(tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(repository / "tests/golden/rlds_samples/bridge_orig", tmp_path / "bridge_orig"))


def test_inspect_says_what_is_there_and_draws_it(
    bridge: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "inspect", str(bridge), "--split", "all", "--json", "out.json"]) == 0
    printed = capsys.readouterr().out
    assert "all: 4 episodes of 22 to" in printed
    assert "Splits: train 2, val 2." in printed
    assert "image 112 x 112 x 3" in printed
    assert "4  lift the red cube" in printed
    folder = tmp_path / "runs" / "inspect_bridge_orig"
    cameras = {f"frames_image_{number}.png" for number in range(4)}
    assert {path.name for path in folder.iterdir()} == {*cameras, "actions.png"}
    document = json.loads((tmp_path / "out.json").read_text())
    assert document["rows"][0]["value"] == 4
    actions = np.concatenate([open_source(bridge, "all").episode(i).numbers("action") for i in range(4)])
    assert document["actions"]["action[0]"]["q99"] == pytest.approx(np.quantile(actions[:, 0], 0.99))
    assert document["instructions"] == {"lift the red cube": 4}


def test_a_contact_sheet_shows_first_and_last_frames(bridge: Path) -> None:
    source = open_source(bridge)
    sheet = contact_sheet(source, "observation/image_0", episodes=2, frames=3)
    assert sheet.shape == (2 * 112 + 2, 3 * 112 + 4, 3)
    frames = source.episode(0).frames("observation/image_0")
    np.testing.assert_array_equal(sheet[:112, :112], frames.decode(0))
    np.testing.assert_array_equal(sheet[:112, -112:], frames.decode(len(frames) - 1))


def test_large_datasets_are_read_in_part(bridge: Path) -> None:
    summary = summarise(open_source(bridge, "all"), most=2)
    assert (summary.episodes_read, sum(summary.instructions.values())) == (2, 2)
    assert summary.actions[0].counts.sum() == sum(open_source(bridge, "all").lengths[[0, 3]])
    assert spread(100, 3) == [0, 50, 99]
    assert spread(2, 5) == [0, 1]
    assert spread(1, 1) == [0]


def test_convert_writes_and_says_what_next(bridge: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["data", "convert", str(bridge), "out", "--to", "lerobot", "--rate-hz", "5", "--json", "out.json"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "out holds 2." in printed
    assert "Nothing was lost." in printed
    assert "Next: vla data inspect out" in printed
    assert json.loads((tmp_path / "out.json").read_text())["lost"] == []
    assert len(open_source(tmp_path / "out")) == 2


def test_convert_leaves_damage_out_when_told(bridge: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard = sorted(bridge.rglob("*train*"))[0]
    data = bytearray(shard.read_bytes())
    data[5000] ^= 1
    shard.write_bytes(data)
    command = ["data", "convert", str(bridge), "out", "--to", "rlds"]
    assert main(command) == EXIT_USER_ERROR
    assert "record 0 at byte 0: the checksum of its content is wrong" in capsys.readouterr().err
    assert main([*command, "--skip-corrupt"]) == 0
    assert "1 damaged episodes were left out." in capsys.readouterr().out


def test_convert_that_is_interrupted_says_how_to_go_on(
    bridge: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(data_convert, "convert", interrupt)
    assert main(["data", "convert", str(bridge), "out", "--to", "rlds"]) == EXIT_INTERRUPTED
    assert "The same command continues from here." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["inspect", "nowhere"], "nowhere does not exist"),
        (["inspect", "bridge_orig", "--episodes", "0"], "--episodes is 0; at least 1 is needed"),
        (["inspect", "bridge_orig", "--split", "test"], "unknown split 'test'"),
        (["convert", "bridge_orig", "out", "--to", "lerobot"], "Give it with --rate-hz"),
        (["convert", "bridge_orig", "out", "--to", "lerobot", "--rate-hz", "-1"], "it must be above 0"),
    ],
)
def test_mistakes_are_answered(
    bridge: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", *options]) == EXIT_USER_ERROR
    assert message in capsys.readouterr().err


def test_pictures_can_be_opened(bridge: Path, tmp_path: Path) -> None:
    assert main(["data", "inspect", str(bridge), "--out", "pictures"]) == 0
    for path in (tmp_path / "pictures").iterdir():
        assert PIL.Image.open(path).mode == "RGB"


def test_a_pipe_gets_a_line_now_and_then() -> None:
    now = [0.0]
    console = Terminal(file=io.StringIO(), force_terminal=False)
    with Bar("episodes", console, lambda: now[0]) as bar:
        for done in range(1, 4):
            now[0] += PLAIN_LINE_EVERY_S / 2
            bar.update(done, 3)
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue() == "  2/3 episodes\n"
