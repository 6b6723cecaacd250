"""How FAST's coefficients are spelled, so that a byte-pair tokenizer can read them.

symbols   one character of Unicode's private use for each coefficient: tokens are always whole coefficients
bytes     the published files: the character of that number in UTF-8, whose bytes are written as GPT-2 writes
          them; a coefficient of 128 or more takes two, and a token may end between them. GPT-2's rule of words
          first cuts the text, and no pair is joined across a cut
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer, pre_tokenizers

FIRST_PRIVATE = 0xF0000
"""First of 65,534 characters of private use."""
MOST_SYMBOLS = 0x800
"""Characters of at most two bytes in UTF-8."""


@dataclass(frozen=True)
class Spelling(ABC):
    """Spells coefficients counted from the smallest one, 0 to `symbols` - 1.

    Attributes:
        symbols: how many there are.
    """

    symbols: int
    name: ClassVar[str]

    @abstractmethod
    def tokens(self, pairs: Tokenizer, coefficients: NDArray[np.int64]) -> Encoding:
        """Return what a byte-pair tokenizer without a rule of words makes of (n,) coefficients."""

    @abstractmethod
    def spell(self, coefficients: NDArray[np.int64]) -> str:
        """Return the text of (n,) coefficients."""

    @abstractmethod
    def parse(self, text: str) -> tuple[int, str] | None:
        """Return how many coefficients a text spells and the beginning of one more, or None if it spells none."""

    @abstractmethod
    def read(self, text: str) -> NDArray[np.int64]:
        """Return the (n,) coefficients that a whole text spells."""

    @abstractmethod
    def pending(self, tokens: Iterable[str]) -> tuple[str, ...]:
        """Return "" and all beginnings of coefficients with which some of the tokens may end."""


class Symbols(Spelling):
    """One character for each."""

    name = "symbols"

    def tokens(self, pairs: Tokenizer, coefficients: NDArray[np.int64]) -> Encoding:
        """See `Spelling`."""
        return pairs.encode(self.spell(coefficients), add_special_tokens=False)

    def spell(self, coefficients: NDArray[np.int64]) -> str:
        """See `Spelling`."""
        return "".join(chr(FIRST_PRIVATE + int(each)) for each in coefficients)

    def parse(self, text: str) -> tuple[int, str] | None:
        """See `Spelling`."""
        inside = all(0 <= ord(each) - FIRST_PRIVATE < self.symbols for each in text)
        return (len(text), "") if inside else None

    def read(self, text: str) -> NDArray[np.int64]:
        """See `Spelling`."""
        return np.array([ord(each) - FIRST_PRIVATE for each in text], dtype=np.int64)

    def pending(self, tokens: Iterable[str]) -> tuple[str, ...]:
        """See `Spelling`."""
        return ("",)


class Bytes(Spelling):
    """Bytes of UTF-8, as the published tokenizers have them."""

    name = "bytes"

    def tokens(self, pairs: Tokenizer, coefficients: NDArray[np.int64]) -> Encoding:
        """See `Spelling`."""
        pairs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        return pairs.encode("".join(chr(int(each)) for each in coefficients), add_special_tokens=False)

    def spell(self, coefficients: NDArray[np.int64]) -> str:
        """See `Spelling`."""
        text = "".join(chr(int(each)) for each in coefficients)
        return "".join(WRITTEN[byte] for byte in text.encode())

    def parse(self, text: str) -> tuple[int, str] | None:
        """See `Spelling`."""
        data = _bytes(text)
        if data is None:
            return None
        begun = data[-1:] if data and 0xC2 <= data[-1] < 0xE0 else b""
        try:
            whole = data[: len(data) - len(begun)].decode()
        except UnicodeDecodeError:
            return None
        if any(ord(each) >= self.symbols for each in whole) or (begun and (begun[0] & 0x1F) << 6 >= self.symbols):
            return None
        return len(whole), "".join(WRITTEN[byte] for byte in begun)

    def read(self, text: str) -> NDArray[np.int64]:
        """See `Spelling`."""
        data = _bytes(text)
        assert data is not None  # the grammar let it be said
        return np.array([ord(each) for each in data.decode()], dtype=np.int64)

    def pending(self, tokens: Iterable[str]) -> tuple[str, ...]:
        """See `Spelling`."""
        leads = {token[-1] for token in tokens if 0xC2 <= READ.get(token[-1], 0) < 0xE0}
        return ("", *sorted(each for each in leads if (READ[each] & 0x1F) << 6 < self.symbols))


SPELLINGS = {each.name: each for each in (Symbols, Bytes)}


def _written() -> dict[int, str]:
    """Return how GPT-2's tokenizer writes each byte: itself where it prints, else a character from 256 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}


WRITTEN = _written()
READ = {text: byte for byte, text in WRITTEN.items()}


def _bytes(text: str) -> bytes | None:
    known = [READ.get(each) for each in text]
    return None if None in known else bytes(byte for byte in known if byte is not None)
