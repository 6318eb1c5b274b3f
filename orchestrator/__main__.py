"""`python -m orchestrator`, and the `orchestrator` command. Imports: the command line, at the last moment."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; errors made for people are printed as such and give their exit code."""
    from orchestrator.cli.app import run_app

    sys.exit(run_app(sys.argv[1:]))


if __name__ == "__main__":
    main()
