"""All randomness comes from here: a seed per (run seed, what, numbers), so there is no generator state to save."""

from __future__ import annotations

import hashlib


def seed_for(seed: int, what: str, *numbers: int) -> int:
    """A 63-bit seed for one use: the same arguments give the same seed on every machine and Python."""
    text = f"{seed}/{what}/" + "/".join(str(n) for n in numbers)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1
