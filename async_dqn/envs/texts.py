"""Texts as numbers: how often each word occurs, and each pair of neighbours, by hashed buckets.

The hashing trick (Weinberger et al. 2009): no vocabulary is needed, so that words nobody has seen
yet have their place too. The hash is the same in every process and on every machine.
"""

import itertools
import re
import zlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

BUCKETS = 128  # of words, and as many of pairs: few of MiniGrid's 50 words share one
WIDTH = 2 * BUCKETS
WORD = re.compile(r"[^\W_]+")


@lru_cache(1024)  # missions repeat
def hashed_words(text: str) -> NDArray[np.uint8]:
    """Counts [WIDTH] of the words, in lower case, and of their pairs; at most 255 each."""
    words = WORD.findall(text.lower())
    pairs = [f"{first} {second}" for first, second in itertools.pairwise(words)]
    return np.concatenate([_counts(words), _counts(pairs)])


def _counts(items: Sequence[str]) -> NDArray[np.uint8]:
    buckets = np.zeros(BUCKETS, np.int64)
    np.add.at(buckets, [zlib.crc32(item.encode()) % BUCKETS for item in items], 1)
    return np.minimum(buckets, 255).astype(np.uint8)
