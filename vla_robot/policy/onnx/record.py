"""onnx.json of an exported folder: what its graphs read and give, who made them, and how near they came to torch.

Nothing of the file names a path: the graphs' names follow from their sizes, and the weights have one name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vla_robot.core.errors import CheckpointError, ContractError
from vla_robot.core.untrusted import malformed
from vla_robot.policy.vla.inputs.prompts import PromptForm
from vla_robot.policy.vla.inputs.reader import InputSizes
from vla_robot.policy.vla.json_files import read_json, require_folder, shown, whole, write_json

RECORD, WEIGHTS = "onnx.json", "weights.bin"
FORMAT = 1
"""Version of this file's layout; a folder of another one is refused."""
OPSET, IR = 20, 10
"""Versions of ONNX's operators and of its file format, the only ones that are read."""
MOST_BUCKETS, MOST_LAYERS = 64, 256
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
class Answer:
    """Sizes of an answer.

    Attributes:
        action_dim: D, tokens of an action.
        chunk: K, actions of an answer.
        layers: layers of the language model, each with keys and values.
        inserted: tokens of the sequence beside those of the text.
        action_vocab_end: one past the last action id.
        n_action_bins: A, number of action ids.
        pad_token_id: id that pads text.
    """

    action_dim: int
    chunk: int
    layers: int
    inserted: int
    action_vocab_end: int
    n_action_bins: int
    pad_token_id: int

    @property
    def given(self) -> int:
        """Most tokens with which an answer may be told to begin: all but one, where it has several actions."""
        return 0 if self.chunk == 1 else self.chunk * self.action_dim - 1


@dataclass(frozen=True)
class Parity:
    """The exported graphs beside torch, measured at export.

    Attributes:
        observations: number of observations.
        tokens: number of compared tokens.
        differ: share of tokens that differ.
        logits: largest difference of a logit of the first token.
        actions: mean difference of the normalised actions, whose range is 2.
    """

    observations: int
    tokens: int
    differ: float
    logits: float
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
        answer: sizes of an answer.
        prompt: how an instruction becomes ids.
        preprocessing: how a frame becomes pixels, see `frames.py`.
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

    def write(self, folder: Path) -> None:
        """Write onnx.json."""
        write_json(folder / RECORD, {"format": FORMAT, "opset": OPSET, "ir": IR, **asdict(self)})


def see_name(rows: int) -> str:
    """Return the file's name of the graph that sees so many rows."""
    return f"see_{rows}.onnx"


def step_name(step: str, bucket: Bucket) -> str:
    """Return the file's name of a graph that reads: `step` is one of `steps_of`."""
    return f"{step}_{bucket.rows}x{bucket.text}.onnx"


def steps_of(answer: Answer) -> tuple[str, ...]:
    """Return the steps that read, for an answer of one action or of several."""
    return ("begin", "correct") if answer.chunk == 1 else ("begin", "correct", "advance")


def memory_names(answer: Answer, end: str = "") -> list[str]:
    """Return the names of keys and values of each layer in turn; `end` is READ, or nothing."""
    return [f"{what}_{layer}{end}" for layer in range(answer.layers) for what in ("keys", "values")]


def file_names(record: Record) -> Iterator[str]:
    """Yield the names of a record's graphs and of their weights."""
    yield WEIGHTS
    yield from (see_name(rows) for rows in sorted({bucket.rows for bucket in record.buckets}))
    yield from (step_name(step, bucket) for bucket in record.buckets for step in steps_of(record.answer))


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
    inputs, answer, prompt = data["inputs"], data["answer"], data["prompt"]
    proprio = inputs["proprio_dim"]
    vocabulary = whole(source, "vocabulary", inputs["vocabulary"], 4_194_304)
    bins = whole(source, "n_action_bins", answer["n_action_bins"], vocabulary, 2)
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
        answer=Answer(
            whole(source, "action_dim", answer["action_dim"], 1024),
            whole(source, "chunk", answer["chunk"], 1000),
            whole(source, "layers", answer["layers"], MOST_LAYERS),
            whole(source, "inserted", answer["inserted"], 1_000_000, 0),
            whole(source, "action_vocab_end", answer["action_vocab_end"], vocabulary, bins),
            bins,
            whole(source, "pad_token_id", answer["pad_token_id"], vocabulary - 1, 0),
        ),
        prompt=PromptForm(
            str(prompt["text"]),
            tuple(whole(source, "first", id, vocabulary - 1, 0) for id in prompt["first"]),
            tuple(whole(source, "last", id, vocabulary - 1, 0) for id in prompt["last"]),
            whole(source, "eos", prompt["eos"], vocabulary - 1, 0),
        ),
        preprocessing=dict(data["preprocessing"]),
        statistics_key=None if data["statistics_key"] is None else str(data["statistics_key"]),
        threads=whole(source, "threads", data["threads"], 1024, 0),
        versions=_texts(data["versions"]),
        source=_texts(data["source"]),
        files=_texts(data["files"]),
        parity=None if data["parity"] is None else Parity(**data["parity"]),
    )


def _texts(table: Mapping[str, Any]) -> dict[str, str]:
    return {str(key): str(text) for key, text in table.items()}
