"""`layerlens` and `python -m layerlens` are the command line."""

import sys


def main() -> None:
    """Runs the command line, which takes seconds to import; Ctrl-C meanwhile ends in one line and 130 too."""
    try:
        from layerlens.cli import main as run
    except KeyboardInterrupt:
        print("layerlens: interrupted before it began", file=sys.stderr)
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
