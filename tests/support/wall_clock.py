"""A wall clock that a test sets for a process while it runs, by a small library in C."""

from __future__ import annotations

import os
import struct
import subprocess
from pathlib import Path

_SOURCE = Path(__file__).parent / "clock" / "set_clock.c"


class WallClock:
    """The wall clock of processes started with `environment`; needs ``cc``."""

    def __init__(self, directory: Path) -> None:
        self._offset = directory / "wall-clock-offset"
        self.set_s(0)
        library = directory / "set_clock.so"
        command = ["cc", "-shared", "-fPIC", "-O1", "-o", library, _SOURCE, "-ldl"]
        subprocess.run(command, check=True)
        self.environment = {"LD_PRELOAD": str(library), "WALL_CLOCK_OFFSET": str(self._offset)}

    def set_s(self, seconds: int) -> None:
        """Set it to so many seconds from now; negative: back."""
        flags = os.O_WRONLY | os.O_CREAT
        file = os.open(self._offset, flags)
        try:
            os.pwrite(file, struct.pack("q", seconds), 0)
        finally:
            os.close(file)
