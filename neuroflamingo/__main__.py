"""`python -m neuroflamingo` is the command line."""

import sys

from neuroflamingo.cli import main

if __name__ == "__main__":
    sys.exit(main())
