# MuJoCo's bindings are compiled and come without annotations; everything in them is Any to the type checker.
from typing import Any

def __getattr__(name: str) -> Any: ...
