"""``python -m anabranch`` is the same as the console command ``anabranch``."""

from anabranch.dataflows.cli.app import main_process

if __name__ == "__main__":
    main_process()
