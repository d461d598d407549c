"""Shows how a pipeline is doing while it runs: a live table, or a line now and then in a log."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry
from rich.console import Console
from rich.live import Live

from dataflows.status import Status, read_status, status_table

_REFRESH_S = 0.5
_LINE_EVERY_S = 10.0


class Watch:
    """Reads a registry twice a second and shows it on ``console``."""

    def __init__(self, pipeline: str, registry: CollectorRegistry, console: Console) -> None:
        self._pipeline = pipeline
        self._registry = registry
        self._console = console
        self._started = time.monotonic()
        self._last: tuple[float, float] = (self._started, 0.0)
        self._rate = 0.0

    def status(self) -> Status:
        """Read the registry now, and bring the rate up to date."""
        status, now = read_status(self._registry), time.monotonic()
        then, events = self._last
        if now - then > 0.1:
            self._rate = (status.events - events) / (now - then)
            self._last = (now, status.events)
        return status

    def line(self) -> str:
        """One line for a log."""
        status = self.status()
        quality = ", ".join(f"{name} {value:.4f}" for name, value in status.quality.items())
        return (
            f"{self._pipeline}: {status.events:,.0f} events ({self._rate:,.0f}/s), "
            f"{status.predictions:,.0f} predictions, {status.learned:,.0f} labels learned, "
            f"{sum(status.dead_letters.values()):,.0f} dead letters, lag {status.lag:,.0f}"
            + (f"; {quality}" if quality else "")
        )

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show while the block runs, and once more at its end."""
        done = threading.Event()
        live = self._console.is_terminal
        thread = threading.Thread(
            target=self._show_live if live else self._show_lines, args=(done,), daemon=True
        )
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def summary(self) -> None:
        """Print the final table, with the mean rate over the whole run."""
        status = read_status(self._registry)
        rate = status.events / max(time.monotonic() - self._started, 1e-9)
        self._console.print(status_table(self._pipeline, status, rate))

    def _show_live(self, done: threading.Event) -> None:
        with Live(console=self._console, auto_refresh=False, transient=True) as live:
            while not done.wait(_REFRESH_S):
                live.update(status_table(self._pipeline, self.status(), self._rate), refresh=True)

    def _show_lines(self, done: threading.Event) -> None:
        while not done.wait(_LINE_EVERY_S):
            self._console.print(self.line(), highlight=False)
