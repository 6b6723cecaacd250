"""Boxes in words: what others read in the same answers, round trips, and malformed answers as errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.paligemma.processing_paligemma import EXTRA_TOKENS

from vla_robot.core.errors import ContractError, PolicyError
from vla_robot.core.language.boxes import (
    LOC_TOKENS,
    SEG_TOKENS,
    Box,
    asks_for_boxes,
    boxes_in_words,
    boxes_of,
    overlap,
)

ROWS = json.loads((Path(__file__).parents[1] / "golden" / "paligemma" / "boxes.json").read_text())["rows"]
LARGEST_ERROR = 1.5 / 1023  # half a bin of rounding, and one bin between the scales of writing and of reading

fractions = st.floats(0, 1)
names = st.from_regex(r"[a-z]+( [a-z]+)?", fullmatch=True)
codes = st.one_of(st.just(()), st.lists(st.integers(0, 127), min_size=16, max_size=16).map(tuple))


@st.composite
def boxes(draw: st.DrawFn) -> Box:
    (y_min, y_max), (x_min, x_max) = (sorted((draw(fractions), draw(fractions))) for _ in range(2))
    return Box(y_min, x_min, y_max, x_max, draw(names), draw(codes))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['answer'][:12]}-{row['size'][0]}")
def test_answers_are_read_as_supervision_reads_them(row: dict) -> None:
    width, height = row["size"]
    found = boxes_of(row["answer"], "detect it")
    assert [box.in_pixels(height, width) for box in found] == [pytest.approx(tuple(each)) for each in row["xyxy"]]
    assert [box.name for box in found] == row["names"]


def test_tokens_are_those_of_paligemmas_processor_in_its_order() -> None:
    assert [*LOC_TOKENS, *SEG_TOKENS] == list(EXTRA_TOKENS)


@settings(max_examples=50, deadline=None)
@given(st.lists(boxes(), min_size=1, max_size=4))
def test_what_is_said_is_read_again(said: list[Box]) -> None:
    for box, again in zip(said, boxes_of(boxes_in_words(said)), strict=True):
        assert (again.name, again.codes) == (box.name, box.codes)
        edges = [(getattr(box, edge), getattr(again, edge)) for edge in ("y_min", "x_min", "y_max", "x_max")]
        assert all(abs(one - other) <= LARGEST_ERROR for one, other in edges)


@settings(max_examples=100, deadline=None)
@given(
    st.text()
    | st.lists(st.sampled_from([*LOC_TOKENS[::100], "<loc1024>", *SEG_TOKENS[::20], " ", ";", "cube"])).map("".join)
)
def test_any_text_is_boxes_in_order_or_an_error(text: str) -> None:
    try:
        found = boxes_of(text)
    except PolicyError:
        return
    assert all(0 <= box.y_min <= box.y_max < 1 and 0 <= box.x_min <= box.x_max < 1 for box in found)
    assert boxes_of(boxes_in_words(found)) is not None


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("I see a red cube", "'I see a red cube'"),
        ("<loc0001><loc0002><loc0003> cube", "'<loc0001><loc0002><loc0003> cube'"),
        ("<loc0001><loc0002><loc0003><loc0004><loc0005> cube", "<loc0005> cube'"),
        ("<loc0001><loc0002><loc0003><loc1024> cube", "a number above <loc1023>"),
        ("<loc0001><loc0002><loc0003><loc004> cube", "<loc004> cube'"),
        ("<loc0001><loc0002><loc0003><loc٠٠٠٤> cube", "cube'"),
        ("<loc0500><loc0002><loc0003><loc0004> cube", "lower right corner lies before its upper left"),
        ("<loc0001><loc0002><loc0003><loc0004><seg001> cube", "<seg001> cube'"),
        ("<loc0001><loc0002><loc0003><loc0004>" + "<seg128>" * 16, "a number above <loc1023> or <seg127>"),
        ("<loc0001><loc0002><loc0003><loc0004> cube ;", "''"),
        ("<loc0001><loc0002><loc0003><loc0004> cube ; dog", "'dog'"),
    ],
)
def test_malformed_answers_say_what_is_wrong(answer: str, reason: str) -> None:
    with pytest.raises(PolicyError, match="the answer is no list of boxes") as error:
        boxes_of(answer, "detect cube")
    assert reason in str(error.value)


def test_segmentation_needs_the_codes_of_a_mask() -> None:
    box = "<loc0001><loc0002><loc0003><loc0004>"
    (found,) = boxes_of(box + "".join(SEG_TOKENS[:16]) + " cube", "segment cube")
    assert found.codes == tuple(range(16))
    with pytest.raises(PolicyError, match="without the 16 <seg> codes of its mask"):
        boxes_of(f"{box} cube", "segment cube")


def test_an_empty_answer_names_nothing() -> None:
    assert boxes_of(" ", "detect cube") == ()


def test_questions_that_ask_for_boxes() -> None:
    assert asks_for_boxes("detect cube") and asks_for_boxes("segment cube")
    assert not asks_for_boxes("how many cubes?") and not asks_for_boxes("detective?")


def test_overlap_is_the_shared_area_by_the_common_one() -> None:
    left, right = Box(0, 0, 1, 0.5), Box(0, 0.25, 1, 0.75)
    assert overlap(left, right) == pytest.approx(1 / 3)
    assert overlap(left, left) == 1
    assert overlap(left, Box(0, 0.5, 1, 1)) == 0


@pytest.mark.parametrize("edges", [(0.5, 0, 0.4, 1), (-0.1, 0, 1, 1), (0, 0, 1.1, 1), (0, 0, float("nan"), 1)])
def test_boxes_outside_of_a_picture_are_refused(edges: tuple[float, float, float, float]) -> None:
    with pytest.raises(ContractError, match="the order is 0 <= min <= max <= 1"):
        Box(*edges)
