"""onnx.json of an exported folder: what its graphs read and give, who made them, and how near they came to torch.

Nothing of the file names a path: the graphs' names follow from their sizes, and the weights have one name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vla_robot.core.errors import CheckpointError, ContractError, unknown
from vla_robot.core.normalise import BOUNDS
from vla_robot.core.untrusted import malformed
from vla_robot.policy.vla.inputs.prompts import PromptForm
from vla_robot.policy.vla.inputs.reader import InputSizes
from vla_robot.policy.vla.json_files import read_json, require_folder, shown, whole, write_json

RECORD, WEIGHTS = "onnx.json", "weights.bin"
FORMAT = 2
"""Version of this file's layout; a folder of another one is refused."""
OPSET, IR = 20, 10
"""Versions of ONNX's operators and of its file format, the only ones that are read."""
MOST_BUCKETS, MOST_LAYERS, MOST_TOKENS = 64, 256, 65_536
NUMBERS_APART = 1e-4
"""Normalised numbers of an answer, whose range is 2, that are as near are equal: rounding of other kernels."""
READ = "_read"
"""Ends the names of keys and values that a graph gives which has them as inputs too."""


@dataclass(frozen=True, order=True)
class Bucket:
    """Size of an inference.

    Attributes:
        rows: B, observations.
        text: L, tokens of a prompt's text; a shorter one is padded at the right.
    """

    rows: int
    text: int


@dataclass(frozen=True)
class TokenAnswer:
    """An answer in tokens, which graphs guess and correct.

    Attributes:
        action_dim: numbers of an action.
        chunk: K, actions of an answer.
        tokens: most tokens of an answer.
        drafted: D, tokens that are guessed together.
        given: most tokens with which an answer may be told to begin; 0 where none is.
        layers: layers of the language model, each with keys and values.
        inserted: tokens of the sequence beside those of the text.
        pad_token_id: id that pads text.
        codec: how actions are said, as in codec.json.
    """

    action_dim: int
    chunk: int
    tokens: int
    drafted: int
    given: int
    layers: int
    inserted: int
    pad_token_id: int
    codec: Mapping[str, Any]

    @property
    def steps(self) -> tuple[str, ...]:
        """Names of the steps behind `see`, each a graph."""
        corrects = ("correct",) if self.drafted > 1 else ()
        advances = ("advance",) if self.tokens > self.drafted else ()
        return ("begin", *corrects, *advances)


@dataclass(frozen=True)
class ChunkAnswer:
    """An answer in numbers, which one graph regresses in one pass.

    Attributes:
        action_dim: numbers of an action.
        chunk: K, actions of an answer.
        normalisation: key of `core.normalise.BOUNDS`: the statistics that are -1 and +1.
        clip: cut actions to [-1, 1].
        eos: id that ends a prompt, and stands where the actions are read.
        pad_token_id: id that pads text.
    """

    action_dim: int
    chunk: int
    normalisation: str
    clip: bool
    eos: int
    pad_token_id: int

    @property
    def steps(self) -> tuple[str, ...]:
        """Names of the steps, each a graph."""
        return ("answer",)

    @property
    def placeholders(self) -> int:
        """Tokens behind each prompt: one for each number, and the end."""
        return self.chunk * self.action_dim + 1


type Answer = TokenAnswer | ChunkAnswer
HEADS = {"tokens": TokenAnswer, "chunk": ChunkAnswer}
"""`head` of onnx.json -> what it says of an answer."""


@dataclass(frozen=True)
class Parity:
    """The exported graphs beside torch, measured at export.

    Attributes:
        observations: number of observations.
        compared: number of compared tokens; of compared numbers for an answer in numbers.
        differ: share of them that differ; numbers differ if they are further apart than `NUMBERS_APART`.
        outputs: largest difference of a logit of the first token, or of a number.
        actions: mean difference of the normalised actions, whose range is 2.
    """

    observations: int
    compared: int
    differ: float
    outputs: float
    actions: float


@dataclass(frozen=True)
class Record:
    """Content of onnx.json.

    Attributes:
        policy: name of the exported policy.
        family: `model_type` of its config.json.
        precision: "float32", or "int8" for matrices that onnxruntime's quantiser made.
        inputs: sizes of what the model reads.
        frames: (N, C, H, W) shape of one row's pixels.
        buckets: sizes of the graphs.
        answer: form and sizes of an answer.
        prompt: how an instruction becomes ids.
        preprocessing: how a frame becomes pixels, see `frames.py`.
        cameras: names in the order of the model's images; empty takes all of an observation, sorted by name.
        statistics_key: dataset that un-normalises the actions; None for the only one.
        threads: processor threads of an inference that suit this size; 0 leaves them to the runtime.
        versions: package -> version at export.
        source: name of a file of the exported policy -> its sha256.
        files: name of a file of this folder -> its sha256.
        parity: the graphs beside torch; None while they are being compared.
    """

    policy: str
    family: str
    precision: str
    inputs: InputSizes
    frames: tuple[int, int, int, int]
    buckets: tuple[Bucket, ...]
    answer: Answer
    prompt: PromptForm
    preprocessing: Mapping[str, Any]
    cameras: tuple[str, ...]
    statistics_key: str | None
    threads: int
    versions: Mapping[str, str]
    source: Mapping[str, str]
    files: Mapping[str, str]
    parity: Parity | None

    def bucket(self, rows: int, text: int) -> Bucket:
        """Return the smallest bucket for a number of rows and tokens of text; with fewer rows if none has so many.

        Raises:
            ContractError: no bucket has so many tokens.
        """
        fits = [bucket for bucket in self.buckets if bucket.text >= text]
        if not fits:
            longest = max(bucket.text for bucket in self.buckets)
            raise ContractError(
                f"the prompt has {text} tokens of text, but the longest graph of this folder reads {longest}. Use a "
                f"shorter instruction, or export the policy again: vla export onnx {self.policy} FOLDER --text {text}."
            )
        return min(fits, key=lambda bucket: (bucket.rows < rows, abs(bucket.rows - rows), bucket.text))

    def as_data(self) -> dict[str, Any]:
        """Return the content of onnx.json."""
        head = next(name for name, kind in HEADS.items() if isinstance(self.answer, kind))
        return {"format": FORMAT, "opset": OPSET, "ir": IR, "head": head, **asdict(self)}

    def write(self, folder: Path) -> None:
        """Write onnx.json."""
        write_json(folder / RECORD, self.as_data())


def see_name(rows: int) -> str:
    """Return the file's name of the graph that sees so many rows."""
    return f"see_{rows}.onnx"


def step_name(step: str, bucket: Bucket) -> str:
    """Return the file's name of a graph for a bucket: `step` is one of `Answer.steps`."""
    return f"{step}_{bucket.rows}x{bucket.text}.onnx"


def memory_names(answer: TokenAnswer, end: str = "") -> list[str]:
    """Return the names of keys and values of each layer in turn; `end` is READ, or nothing."""
    return [f"{what}_{layer}{end}" for layer in range(answer.layers) for what in ("keys", "values")]


def file_names(record: Record) -> Iterator[str]:
    """Yield the names of a record's graphs and of their weights."""
    yield WEIGHTS
    if isinstance(record.answer, TokenAnswer):
        yield from (see_name(rows) for rows in sorted({bucket.rows for bucket in record.buckets}))
    yield from (step_name(step, bucket) for bucket in record.buckets for step in record.answer.steps)


def read_record(folder: Path) -> Record:
    """Read onnx.json strictly.

    Raises:
        CheckpointError: it is missing, damaged, impossible, or of another version.
    """
    require_folder(folder)
    path = folder / RECORD
    data = read_json(path)
    for key, mine in (("format", FORMAT), ("opset", OPSET), ("ir", IR)):
        if data.get(key) != mine:
            raise CheckpointError(
                f"{path}: {key} is {shown(data.get(key))}, but this version of vla_robot reads {mine}. Export the "
                f"policy again with it: vla export onnx {shown(data.get('policy'))} FOLDER."
            )
    with malformed(path, CheckpointError):
        record = _record(str(path), data)
    if missing := [name for name in file_names(record) if name not in record.files]:
        raise CheckpointError(f"{path}: files does not name {missing[0]}. Copy the folder again.")
    return record


def _record(source: str, data: Mapping[str, Any]) -> Record:
    inputs, prompt = data["inputs"], data["prompt"]
    proprio = inputs["proprio_dim"]
    vocabulary = whole(source, "vocabulary", inputs["vocabulary"], 4_194_304)
    frames = tuple(whole(source, "frames", side, 65_536) for side in data["frames"])
    buckets = tuple(
        Bucket(*(whole(source, key, each[key], 65_536) for key in ("rows", "text"))) for each in data["buckets"]
    )
    if len(frames) != 4 or not 1 <= len(buckets) <= MOST_BUCKETS:
        raise CheckpointError(f"{source}: frames must be 4 numbers, and there must be 1 to {MOST_BUCKETS} buckets.")
    if data["precision"] not in ("float32", "int8"):
        raise CheckpointError(f"{source}: precision is {shown(data['precision'])}; expected float32 or int8.")
    return Record(
        policy=str(data["policy"]),
        family=str(data["family"]),
        precision=data["precision"],
        inputs=InputSizes(
            whole(source, "image_size", inputs["image_size"], 65_536),
            whole(source, "num_images", inputs["num_images"], 16),
            None if proprio is None else whole(source, "proprio_dim", proprio, 1024),
            vocabulary,
        ),
        frames=(frames[0], frames[1], frames[2], frames[3]),
        buckets=buckets,
        answer=_answer(source, data["head"], data["answer"], vocabulary),
        prompt=PromptForm(
            str(prompt["text"]),
            tuple(whole(source, "first", id, vocabulary - 1, 0) for id in prompt["first"]),
            tuple(whole(source, "last", id, vocabulary - 1, 0) for id in prompt["last"]),
            whole(source, "eos", prompt["eos"], vocabulary - 1, 0),
        ),
        preprocessing=dict(data["preprocessing"]),
        cameras=tuple(str(name) for name in data["cameras"]),
        statistics_key=None if data["statistics_key"] is None else str(data["statistics_key"]),
        threads=whole(source, "threads", data["threads"], 1024, 0),
        versions=_texts(data["versions"]),
        source=_texts(data["source"]),
        files=_texts(data["files"]),
        parity=None if data["parity"] is None else Parity(**data["parity"]),
    )


def _answer(source: str, head: object, data: Mapping[str, Any], vocabulary: int) -> Answer:
    def number(key: str, largest: int, smallest: int = 1) -> int:
        return whole(source, key, data[key], largest, smallest)

    sizes = {"action_dim": number("action_dim", 1024), "chunk": number("chunk", 1000)}
    pad = number("pad_token_id", vocabulary - 1, 0)
    match head:
        case "tokens":
            tokens = number("tokens", MOST_TOKENS)
            return TokenAnswer(
                **sizes,
                tokens=tokens,
                drafted=number("drafted", tokens),
                given=number("given", tokens - 1, 0),
                layers=number("layers", MOST_LAYERS),
                inserted=number("inserted", 1_000_000, 0),
                pad_token_id=pad,
                codec=dict(data["codec"]),
            )
        case "chunk":
            normalisation = data["normalisation"]
            if normalisation not in BOUNDS:
                raise CheckpointError(f"{source}: {unknown('normalisation', str(normalisation), BOUNDS)}")
            eos = number("eos", vocabulary - 1, 0)
            clip = data["clip"] is True
            return ChunkAnswer(**sizes, normalisation=normalisation, clip=clip, eos=eos, pad_token_id=pad)
        case _:
            raise CheckpointError(f"{source}: {unknown('head', str(head), HEADS)}")


def _texts(table: Mapping[str, Any]) -> dict[str, str]:
    return {str(key): str(text) for key, text in table.items()}
