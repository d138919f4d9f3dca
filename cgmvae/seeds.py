"""One seed a run, a stream of its own for each use of randomness."""

from __future__ import annotations

import hashlib


def derived_seed(seed: int, purpose: str) -> int:
    """A seed for one use of randomness, so that no two uses share a stream."""
    return int.from_bytes(hashlib.sha256(f"{purpose} {seed}".encode()).digest()[:7], "big")
