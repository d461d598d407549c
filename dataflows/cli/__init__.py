"""The ``anabranch`` command: one file per subcommand."""

from anabranch.dataflows.cli.app import main

__all__ = ["main"]
