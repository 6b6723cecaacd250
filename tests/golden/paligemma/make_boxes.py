"""Writes boxes.json: what supervision (`pip install supervision`) reads in such answers."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

from supervision.detection.vlm import from_paligemma  # pyright: ignore[reportMissingImports]

ANSWERS = (
    "<loc0561><loc0375><loc0690><loc0471> red cube",
    "<loc0000><loc0000><loc1023><loc1023> table",
    "<loc0256><loc0512><loc0768><loc1000> cat ; <loc0100><loc0002><loc0101><loc0003> dog",
    "<loc0010><loc0020><loc0030><loc0040> robot arm ; <loc0010><loc0020><loc0030><loc0040> robot arm",
    "",
)
SIZES = ((224, 224), (640, 480), (84, 84))


def main() -> None:
    """Write the file."""
    rows = []
    for answer in ANSWERS:
        for width, height in SIZES:
            xyxy, _, names = from_paligemma(answer, (width, height))
            rows.append({"answer": answer, "size": [width, height], "xyxy": xyxy.tolist(), "names": names.tolist()})
    path = Path(__file__).with_name("boxes.json")
    path.write_text(json.dumps({"supervision": version("supervision"), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
