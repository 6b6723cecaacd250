"""The one thread in which compiled policies run on CUDA.

torch keeps the CUDA graphs of compiled code in tables of the thread that loaded `torch._inductor.cudagraph_trees`, and
raises in any other. Here every caller's work is done in one thread, which gets tables of its own. What else torch keeps
by thread goes with the work: inference mode and the device.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Lock

import torch


def in_graph_thread[R](work: Callable[[], R], device: torch.device) -> R:
    """Return what the work returns, or raise what it raises, in the thread of compiled policies.

    Args:
        work: may be given from any thread, but not from work of this thread.
        device: device of CUDA that is the present one for the work.
    """
    inference = torch.is_inference_mode_enabled()

    def there() -> R:
        with torch.inference_mode(inference), torch.cuda.device(device):
            return work()

    return _thread().submit(there).result()


@cache
def _thread() -> ThreadPoolExecutor:
    from torch._inductor import cudagraph_trees  # here, so that the caller's thread keeps torch's own table

    def get_tables() -> None:
        cudagraph_trees.local.tree_manager_containers = {}
        cudagraph_trees.local.tree_manager_locks = defaultdict(Lock)

    return ThreadPoolExecutor(1, "compiled", initializer=get_tables)
