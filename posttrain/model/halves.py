"""A float32 number as a bf16 one and the 16 bits that it lacks: masters at two bytes a parameter, exact."""

from __future__ import annotations

import torch


def split(wide: torch.Tensor, high: torch.Tensor, low: torch.Tensor) -> None:
    """Write float32 `wide` [N] as bf16 `high` [N] (rounded, ties away from zero) and the int16 `low` [N] it lacks.

    bits(wide) = bits(high) · 2^16 + low,   −2^15 <= low < 2^15;  `wide` itself is used up.
    """
    bits = wide.view(torch.int32)
    low.copy_(bits)  # the lower half of the bits, read as a signed number
    high.view(torch.int16).copy_(bits.add_(0x8000).bitwise_right_shift_(16))


def join(high: torch.Tensor, low: torch.Tensor) -> torch.Tensor:
    """The float32 [N] that `split` wrote, bit for bit (finite values)."""
    return torch.add(low.to(torch.int32), high.view(torch.int16).to(torch.int32), alpha=1 << 16).view(torch.float32)


def whole(files: dict[str, dict[str, torch.Tensor]], name: str) -> torch.Tensor:
    """A checkpoint's weight in full precision: `weights` as it is, or joined with its part in `halves`."""
    high, low = files["weights"][name], files.get("halves", {}).get(name)
    return high if low is None else join(high.reshape(-1), low.reshape(-1)).view(high.shape)
