"""`python -m punie`."""

import sys

# `python -m` puts the working directory first on the path, and a repository's `rich.py` must not be taken for rich.
if not sys.flags.safe_path and sys.path:
    del sys.path[0]

from punie.cli import main

if __name__ == "__main__":
    sys.exit(main())
