"""A float32 number as a bf16 one and the 16 bits that it lacks: masters at two bytes a parameter, exact."""

from __future__ import annotations

import torch

from ..core.errors import UserError


def split(wide: torch.Tensor, high: torch.Tensor, low: torch.Tensor) -> None:
    """Write float32 `wide` [N] as bf16 `high` [N] (rounded, ties away from zero) and the int16 `low` [N] it lacks.

    bits(wide) = bits(high) · 2^16 + low,   −2^15 <= low < 2^15;  `wide` itself is used up.
    """
    bits = wide.view(torch.int32)
    low.copy_(bits)  # the lower half of the bits, read as a signed number
    high.view(torch.int16).copy_(bits.add_(0x8000).bitwise_right_shift_(16))


def leave_middles(low: torch.Tensor) -> None:
    """Move numbers that lie exactly between two bf16 ones by 2^−24 of themselves, in place: low [N] int16.

    Ties round away from zero here and to even elsewhere; without ties, whoever rounds the float32 number again gets
    the bf16 one that was computed with (test_optim.py::test_rounded_again_a_master_is_what_training_computed_with).
    """
    low.clamp_(min=1 - (1 << 15))


def join(high: torch.Tensor, low: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """The float32 [N] that `split` wrote, bit for bit (finite values); into `out` where given."""
    wide = high.to(torch.float32) if out is None else out.copy_(high)  # the same bits, 16 zeros below
    wide.view(torch.int32).add_(low)
    return wide


def whole(files: dict[str, dict[str, torch.Tensor]], name: str, shape: torch.Size) -> torch.Tensor:
    """A checkpoint's weight in full precision: `weights` as it is, or joined with its part in `halves`.

    One that has another shape than the model's is a UserError: a smaller one would be spread over the model's.
    """
    high, low = files["weights"][name], files.get("halves", {}).get(name)
    if high.shape != shape:
        raise UserError("a weight of the checkpoint has another shape than the model's", where=name,
                        found=str(list(high.shape)), expected=str(list(shape)),
                        fix="use it with the model and the settings (lora_r, …) that its run began with")
    return high if low is None else join(high.reshape(-1), low.reshape(-1)).view(high.shape)
