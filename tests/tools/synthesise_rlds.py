"""Make a large RLDS dataset of invented frames on disk, for measuring memory.

    python synthesise_rlds.py FOLDER [FRAMES]

Frames are JPEG files of about 6 KiB; some of them are made and used again and again, which no reader notices.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import PIL.Image

from vla_robot.core.episode import Episode, Field
from vla_robot.data.formats.rlds.features import parse_features
from vla_robot.data.formats.rlds.writer import RldsWriter
from vla_robot.data.formats.source import EncodedFrames

EPISODE_STEPS = 200
SIZE_PX = 128
DIFFERENT = 64
CAMERA, TEXT = "observation/image", "language_instruction"
RECIPE = 'kind = "source"\naction = ["action"]\n[cameras]\nprimary = "observation/image"\n'


def features() -> dict[str, object]:
    """The content of features.json."""

    def tensor(kind: str, dtype: str, shape: list[int], **more: object) -> dict[str, object]:
        described = {"shape": {"dimensions": [str(n) for n in shape]}, "dtype": dtype, **more}
        return {"pythonClassName": f"tensorflow_datasets.core.features.{kind}.{kind.title()}", kind: described}

    image = tensor("image", "uint8", [SIZE_PX, SIZE_PX, 3], encodingFormat="jpeg")
    image["pythonClassName"] = "tensorflow_datasets.core.features.image_feature.Image"
    steps = {
        "action": tensor("tensor", "float32", [7], encoding="none"),
        "observation": _dict({"image": image}),
        TEXT: {"pythonClassName": "tensorflow_datasets.core.features.text_feature.Text", "text": {}},
    }
    dataset = {"feature": _dict(steps), "length": "-1"}
    return _dict(
        {"steps": {"pythonClassName": "tensorflow_datasets.core.features.dataset_feature.Dataset", "sequence": dataset}}
    )


def _dict(content: dict[str, object]) -> dict[str, object]:
    return {
        "pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
        "featuresDict": {"features": content},
    }


def jpegs(rng: np.random.Generator) -> list[bytes]:
    """Smooth noise, whose files are as large as those of real frames."""
    made: list[bytes] = []
    for _ in range(DIFFERENT):
        rough = PIL.Image.fromarray(rng.integers(0, 256, (48, 48, 3), dtype=np.uint8))
        file = io.BytesIO()
        rough.resize((SIZE_PX, SIZE_PX)).save(file, "JPEG", quality=85)
        made.append(file.getvalue())
    return made


def main(folder: Path, frames: int) -> None:
    rng = np.random.default_rng(0)
    files = jpegs(rng)
    parsed = parse_features(features(), "features.json")
    with RldsWriter(folder / "large", "large", parsed) as writer:
        for number in range(frames // EPISODE_STEPS):
            chosen = [files[i] for i in rng.integers(0, DIFFERENT, EPISODE_STEPS)]
            camera = Field(CAMERA, "image", "uint8", (SIZE_PX, SIZE_PX, 3))
            steps = {
                "action": rng.normal(size=(EPISODE_STEPS, 7)).astype(np.float32),
                CAMERA: EncodedFrames(chosen, camera, "invented"),
                TEXT: ("move about",) * EPISODE_STEPS,
            }
            writer.write(Episode(number, {}, steps, EPISODE_STEPS, f"episode {number}"))
        writer.finish()
    (folder / "large.toml").write_text(f'location = "large"\n{RECIPE}')


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 200_000)
