"""The ``anabranch`` command: one file per subcommand."""

from anabranch.dataflows.cli.app import main, main_process

__all__ = ["main", "main_process"]
