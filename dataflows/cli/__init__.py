"""The ``anabranch`` command: one file per subcommand."""

from dataflows.cli.app import main

__all__ = ["main"]
