"""`posttrain VERB [CONFIG.yaml] [--key value …]`: read the command, run the verb, turn errors into exit codes."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from importlib import import_module

from posttrain import __version__
from posttrain.app.arguments import find_verb, parse
from posttrain.app.help import overview, verb_help
from posttrain.core import ranks
from posttrain.core.errors import UserError
from posttrain.core.process import settle_process

# What goes wrong outside the program, and what to do about it.
OUTSIDE = {
    errno.ENOSPC: ("no space is left on the disk", "free some space, or put the run elsewhere with --output_dir; "
                                                  "then go on with --resume"),
    errno.EDQUOT: ("the disk quota is used up", "free some space, or put the run elsewhere with --output_dir"),
    errno.EACCES: ("permission denied", "check the permissions of this path, or name another"),
    errno.EPERM: ("operation not permitted", "check the permissions of this path, or name another"),
    errno.EROFS: ("the file system is read-only", "name an --output_dir that can be written"),
    errno.ENOENT: ("a file is missing", "check the path"),
    errno.EISDIR: ("this is a folder, not a file", "name a file"),
    errno.ENOTDIR: ("a part of this path is a file, not a folder", "check the path"),
    errno.EMFILE: ("too many files are open", "raise the limit with `ulimit -n 4096`"),
}


def main(argv: list[str] | None = None) -> int:
    """Run one command: its exit code, 0 done, 1 findings (`data check`), 2 a user's error, 130, 143 after a signal."""
    settle_process()
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv or os.environ.get("POSTTRAIN_DEBUG", "") not in ("", "0")
    try:
        return _run(argv)
    except UserError as e:
        return _say(e, debug)
    except KeyboardInterrupt as e:
        print("\ninterrupted", file=sys.stderr)
        return getattr(e, "code", 130)  # 143 after SIGTERM
    except BrokenPipeError:  # `posttrain … | head`: the reader has left, and that is no error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as e:
        if e.errno not in OUTSIDE:
            raise
        message, fix = OUTSIDE[e.errno]
        return _say(UserError(message, where=str(e.filename or ""), fix=fix), debug)
    except (MemoryError, RuntimeError) as e:
        if not _is_memory(e):
            raise
        return _say(UserError("the memory ran out", found=str(e).split("\n")[0][:200],
                              fix="lower pack_tokens or max_length, set gradient_checkpointing: true or method: lora, "
                                  "or take a smaller model"), debug)


def _is_memory(e: BaseException) -> bool:
    """Whether an error is Python's or torch's word for a full memory, of the GPU or of the machine."""
    return isinstance(e, MemoryError) or type(e).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(e)


def _run(argv: list[str]) -> int:
    if not argv or argv[0] in ("--help", "-h", "help") and len(argv) == 1:
        print(overview())
        return 0
    if argv[0] in ("--version", "-V"):
        print(f"posttrain {__version__}")
        return 0
    if argv[0] == "help":
        argv = [*argv[1:], "--help"]
    if "--help" in argv or "-h" in argv:
        try:
            verb, _ = find_verb([a for a in argv if a not in ("--help", "-h")])
        except IndexError:
            print(overview())
            return 0
        print(verb_help(verb))
        return 0
    command = parse(argv)
    module, _, function = command.verb.code.partition(":")
    return getattr(import_module(module), function)(command)


def _say(error: UserError, debug: bool) -> int:
    if not ranks.may_tell(error):
        return 2
    if debug:
        traceback.print_exc()
    print(error, file=sys.stderr)
    return 2
