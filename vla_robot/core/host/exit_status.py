"""Exit status of a child process in words."""

from __future__ import annotations


def exit_in_words(status: int) -> str:
    """Return how a process ended, from `subprocess.Popen.returncode`.

    >>> exit_in_words(-9)
    'killed by signal 9'
    >>> exit_in_words(2)
    'exit status 2'
    """
    return f"killed by signal {-status}" if status < 0 else f"exit status {status}"
