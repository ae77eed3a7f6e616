"""`posttrain`, and `python -m posttrain`: the command line in a process whose heap stays whole."""

import gc
import sys

from posttrain.core.process import restart_without_caches

WITHOUT_TENSORS = ("plan", "data")  # verbs that hold none: small blocks alone are slower without their caches


def main() -> int:
    """Run the command that was typed -> its exit code."""
    if not set(sys.argv[1:2]) & set(WITHOUT_TENSORS):
        restart_without_caches()
    from posttrain.app.cli import main as run  # only now: what is imported before a restart is imported twice

    code = run()
    gc.freeze()  # at the end Python would look through all of torch for cycles, for a second
    return code


if __name__ == "__main__":
    sys.exit(main())
