"""What we use of msgpack, which ships no types."""

from collections.abc import Callable
from typing import Any, NamedTuple

class ExtType(NamedTuple):
    code: int
    data: bytes

class UnpackException(Exception): ...  # noqa: N818 - msgpack's name

def packb(o: Any, **options: Any) -> bytes: ...
def unpackb(packed: bytes | memoryview, *, ext_hook: Callable[[int, bytes], Any] = ..., **options: Any) -> Any: ...
