"""Where a run computes and in which type, each with the reason that is printed."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

from ..core.errors import UserError


def choose_device(name: str) -> tuple[torch.device, str]:
    """`auto` takes CUDA where there is one, else the CPU -> (device, reason)."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device()), f"CUDA: {torch.cuda.get_device_name()}"
        return torch.device("cpu"), "no CUDA device was found"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError("unknown device", where="device", found=name, expected="auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError("this device is not supported", where="device", found=name, expected="auto, cpu or cuda")
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise UserError("there is no such CUDA device", where="device", found=name,
                        expected=f"{torch.cuda.device_count()} CUDA device(s) on this machine",
                        fix="use device: auto or device: cpu")
    return device, "as set"


def choose_dtype(name: str, device: torch.device) -> tuple[torch.dtype, str]:
    """`auto` takes bfloat16 where the hardware multiplies it quickly, else float32 -> (dtype, reason)."""
    if name != "auto":
        return getattr(torch, name), "as set"
    if device.type == "cuda":
        if torch.cuda.get_device_capability(device) >= (8, 0):
            return torch.bfloat16, "this GPU multiplies it natively"
        return torch.float32, "this GPU has no native bfloat16"
    if fast_bfloat16_cpu():
        return torch.bfloat16, "this CPU multiplies it natively"
    return torch.float32, "this CPU has no native bfloat16"


def fast_bfloat16_cpu() -> bool:
    """Whether the CPU has bfloat16 products (AMX or AVX-512 BF16 on x86, BF16 on Arm)."""
    info = Path("/proc/cpuinfo")
    flags = set(info.read_text().split()) if info.is_file() else set()
    if platform.machine() in ("aarch64", "arm64"):
        return "bf16" in flags
    return bool({"amx_bf16", "avx512_bf16"} & flags)
