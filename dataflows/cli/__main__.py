"""``python -m dataflows.cli`` is the same as ``anabranch``."""

from dataflows.cli.app import main

main()
