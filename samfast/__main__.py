"""`python -m samfast`: the command line."""

import sys

from samfast.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
