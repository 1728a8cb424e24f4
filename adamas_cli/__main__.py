"""`python -m adamas_cli` and the console script `adamas`."""

from __future__ import annotations


def main() -> None:
    """Run the command line and exit with its code."""
    from adamas_cli.cli import run

    raise SystemExit(run())


if __name__ == "__main__":
    main()
