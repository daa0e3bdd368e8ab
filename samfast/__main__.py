# PYTHON_ARGCOMPLETE_OK
"""`python -m samfast` and `samfast`: the command line."""

import sys


def main() -> int:
    """Run the command line and return its exit code; Ctrl-C while it is imported too is 130."""
    try:
        from samfast.cli.main import main as run
    except KeyboardInterrupt:
        return 130
    return run()


if __name__ == "__main__":
    sys.exit(main())
