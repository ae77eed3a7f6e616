"""`posttrain env`: what a bug report needs. No environment variables but the few named here, no names of people."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from posttrain import __version__
from posttrain.app.screen import make_console, print_json

PACKAGES = ("torch", "transformers", "tokenizers", "peft", "safetensors", "datasets", "pyarrow", "numpy", "pydantic",
            "sentencepiece", "flash-attn", "bitsandbytes", "vllm")
CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8", "bf16", "i8mm", "sve")
VARIABLES = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "HF_HUB_OFFLINE", "TOKENIZERS_PARALLELISM")


def main(command) -> int:
    """Print the report as a table or as JSON."""
    found = report()
    if command.options["json"]:
        print_json(found)
        return 0
    console = make_console()
    for part, values in found.items():
        console.print(f"[bold]{part}[/bold]")
        for name, value in values.items():
            text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            console.print(f"  {name:<22} {text or '-'}", soft_wrap=True, markup=False)
    return 0


def report() -> dict[str, dict[str, Any]]:
    """Everything, by part; plain values only."""
    memory, disk = psutil.virtual_memory(), shutil.disk_usage(".")
    return {
        "program": {"posttrain": __version__, "python": platform.python_version(), "system": _system(),
                    "installed in": _no_home(Path(sys.prefix))},
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "processor": {"model": _cpu_model(), "cores": psutil.cpu_count(logical=False) or 0,
                      "threads": os.cpu_count(), "usable threads": len(psutil.Process().cpu_affinity())
                      if hasattr(psutil.Process, "cpu_affinity") else os.cpu_count(),
                      "features": cpu_features()},
        "memory and disk": {"memory": _gb(memory.total), "memory free": _gb(memory.available),
                            "disk free here": _gb(disk.free)},
        "torch": _torch(),
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def cpu_features() -> list[str]:
    """Features that decide the speed of bf16 on this processor; empty where the system does not say."""
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return []
    lines = [line for line in info.read_text().splitlines() if line.lower().startswith(("flags", "features"))]
    words = set(lines[0].split()) if lines else set()
    return [flag for flag in CPU_FLAGS if flag in words]


def _torch() -> dict[str, Any]:
    import torch

    found: dict[str, Any] = {"threads": torch.get_num_threads(), "cuda built": torch.version.cuda or "no",
                             "cuda available": torch.cuda.is_available()}
    for i in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(i)
        found[f"cuda:{i}"] = f"{gpu.name}, {_gb(gpu.total_memory)}, compute {gpu.major}.{gpu.minor}"
    return found


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _system() -> str:
    return f"{platform.system()} {platform.release()} {platform.machine()}"


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _no_home(path: Path) -> str:
    home = Path.home()
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
