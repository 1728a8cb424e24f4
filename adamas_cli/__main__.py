"""`python -m adamas_cli` and the console script `adamas`."""

from __future__ import annotations

from adamas_cli.closed import open_closed


def main() -> None:
    """Run the command line and exit with its code."""
    closed = open_closed()
    from adamas_cli.cli import run

    raise SystemExit(run(closed=closed))


if __name__ == "__main__":
    main()
