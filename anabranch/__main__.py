"""``python -m anabranch`` is the same as the console command ``anabranch``."""

from anabranch.dataflows.cli.app import main

if __name__ == "__main__":
    main()
