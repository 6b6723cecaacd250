"""Makes lerobot 0.6.1's models run with the pinned transformers, which is newer than lerobot allows (below 5.6).

Two calls changed since. Both are replaced where lerobot looks them up, once in a process; results are the same.

Source: transformers 5.23, masking_utils.create_causal_mask, cache_utils.DynamicLayer.crop.
"""

from __future__ import annotations

import inspect
from typing import Any


def adapt() -> None:
    """Replace the two calls. May be called twice."""
    from lerobot.policies import pi_gemma
    from lerobot.policies.smolvla import smolvlm_with_expert

    mask = pi_gemma.create_causal_mask
    if not isinstance(mask, _MaskOfCachePosition) and "cache_position" not in inspect.signature(mask).parameters:
        pi_gemma.create_causal_mask = _MaskOfCachePosition(mask)
    if not hasattr(smolvlm_with_expert.DynamicCache, "crops_to_length"):
        smolvlm_with_expert.DynamicCache = _cache_that_crops_to_length(smolvlm_with_expert.DynamicCache)


class _MaskOfCachePosition:
    """Accepts `cache_position`, which transformers derives from the cache and the embeddings by now."""

    def __init__(self, create: Any) -> None:
        self._create = create

    def __call__(self, *args: Any, cache_position: Any, **options: Any) -> Any:
        return self._create(*args, **options)


def _cache_that_crops_to_length(base: Any) -> Any:
    """Return a cache whose `crop` takes the length that is left, and not the number of tokens to remove."""

    class PrefixCache(base):
        crops_to_length = True

        def crop(self, length: int) -> None:
            for layer in self.layers:
                layer.crop(min(length - layer.get_seq_length(), 0))

    return PrefixCache
