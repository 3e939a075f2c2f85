"""`python -m dartune` is the same as the `dartune` command."""

import sys

from dartune.cli import main

if __name__ == "__main__":
    sys.exit(main())
