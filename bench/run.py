"""All benchmarks, one after the other, and their tables: `python -m bench.run [sft] [start] [sampler] [resume]`."""

from __future__ import annotations

import sys

from . import resume, sampler, sft, start
from .shapes import BUILD, SHAPES

PARTS = {"sft": [(sft.main, ["--shape", name]) for name in SHAPES], "start": [(start.main, [])],
         "sampler": [(sampler.main, [])], "resume": [(resume.main, [])]}


def main(argv: list[str]) -> int:
    unknown = [a for a in argv if a not in PARTS]
    if unknown:
        print(f"unknown part {unknown[0]!r}; there are {', '.join(PARTS)}", file=sys.stderr)
        return 2
    failed = [part for part in argv or PARTS for run, arguments in PARTS[part] if run(arguments)]
    print("\n" + "\n".join(path.read_text() for path in sorted(BUILD.glob("*.md"))))
    if failed:
        print(f"out of bounds: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
