"""`posttrain`, and `python -m posttrain`: the command line in a process whose heap stays whole."""

import sys

from posttrain.core.process import restart_without_caches


def main() -> int:
    """Run the command that was typed -> its exit code."""
    restart_without_caches()
    from posttrain.app.cli import main as run  # only now: what is imported before a restart is imported twice

    return run()


if __name__ == "__main__":
    sys.exit(main())
