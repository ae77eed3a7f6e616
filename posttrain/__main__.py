"""`python -m posttrain` is `posttrain`."""

import sys

from posttrain.app.cli import main

if __name__ == "__main__":
    sys.exit(main())
