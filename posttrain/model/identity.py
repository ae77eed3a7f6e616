"""Which base an adapter was trained on: a hash of its weights, written beside the adapter and compared at every use."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from ..core.errors import UserError
from .resolve import ModelRef

FILE = "base.json"
BLOCK, BLOCKS = 4096, 16  # bytes of a block, blocks read of a tensor


@dataclass(frozen=True, slots=True)
class BaseFacts:
    """A base as adapters know it: the hash of its weights ('' where it cannot be told) and whether they are packed."""

    sha256: str = ""
    four_bit: bool = False


def base_hash(base: str) -> str:
    """SHA-256 over every tensor's name, type, shape and a sample of its bytes; '' where the files cannot be found.

    A tensor up to 64 KiB is read whole, of a larger one 16 blocks of 4 KiB in equal steps, the first and the last
    among them. So it costs milliseconds (0.6B: 310 tensors, 14 MB; 70B: 723, 47 MB), which lets every start, chat and
    merge check it, where reading all of a 70B would take minutes each time. It is real in what it is for: further
    training, re-quantizing, merging, resizing, or another model change what is sampled, since each changes
    (nearly) every value of the tensors it touches. Single values edited between the blocks are not seen. How tensors
    are split into files does not matter (test_identity.py).
    """
    files = weight_files(base)
    parts = sorted(part for file in files for part in _tensors(file))
    if not parts:
        return ""
    whole = hashlib.sha256()
    for name, facts, sample in parts:
        whole.update(f"{name} {facts} {sample}\n".encode())
    return whole.hexdigest()


def weight_files(base: str) -> list[Path]:
    """The safetensors files that transformers loads: of a folder, or of a hub id as it lies in the cache."""
    from huggingface_hub import try_to_load_from_cache

    def find(name: str) -> Path | None:
        path = Path(base) / name if Path(base).is_dir() else try_to_load_from_cache(base, name)
        return Path(path) if isinstance(path, str | Path) and Path(path).is_file() else None

    if one := find("model.safetensors"):
        return [one]
    if index := find("model.safetensors.index.json"):
        names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
        return [path for name in names if (path := find(name))]
    return sorted(Path(base).glob("*.safetensors")) if Path(base).is_dir() else []


def _tensors(path: Path) -> list[tuple[str, str, str]]:
    """(name, type and shape, hash of the sampled bytes) of each tensor in a safetensors file."""
    found = []
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            begin, end = (8 + size + offset for offset in entry["data_offsets"])
            sample = hashlib.sha256()
            for at, length in _blocks(begin, end):
                file.seek(at)
                sample.update(file.read(length))
            found.append((name, f"{entry['dtype']} {entry['shape']}", sample.hexdigest()))
    return found


def _blocks(begin: int, end: int) -> list[tuple[int, int]]:
    if end - begin <= BLOCK * BLOCKS:
        return [(begin, end - begin)]
    last = end - begin - BLOCK
    return [(begin + last * i // (BLOCKS - 1), BLOCK) for i in range(BLOCKS)]


def write_base(folder: Path, facts: BaseFacts) -> None:
    """Put `base.json` beside an adapter's weights."""
    (folder / FILE).write_text(json.dumps(asdict(facts), indent=1) + "\n", "utf-8")


def read_base(ref: ModelRef) -> BaseFacts | None:
    """What the adapter of a reference knows of its base; None for an adapter of another tool."""
    path = ref.adapter / FILE if ref.adapter else None
    if path is None or not path.is_file():
        return None
    try:
        return BaseFacts(**json.loads(path.read_text("utf-8")))
    except (ValueError, TypeError) as e:
        raise UserError(f"{FILE} cannot be read", where=str(path), found=str(e),
                        fix="copy the adapter's folder again, or remove this file: the base is then not checked"
                        ) from None


def check_base(ref: ModelRef, known: BaseFacts | None, where: str) -> str:
    """Stop where the base is not the one that was trained on; the hash of the base as it is now."""
    now = base_hash(ref.base)
    if known and known.sha256 and now and now != known.sha256:
        raise UserError("these weights are not the base that the adapter was trained on", where=where,
                        found=f"{ref.base}, sha256 {now[:12]}…", expected=f"sha256 {known.sha256[:12]}…",
                        fix="name the base of the training as base_model_name_or_path in adapter_config.json, or put "
                            "its files back")
    return now
