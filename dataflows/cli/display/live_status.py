"""Status of a running pipeline on the console: a live table, or a line every few seconds."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry
from rich.console import Console
from rich.live import Live
from rich.table import Table

from anabranch.dataflows.cli.display.progress import in_background
from anabranch.dataflows.messages.time_unit_check import unit_advice
from anabranch.dataflows.telemetry.logs import record, structured
from anabranch.dataflows.telemetry.status import (
    Buckets,
    Status,
    latencies,
    live_only,
    quality_line,
    quality_title,
    read_status,
    since,
    status_table,
    unjoined_text,
)

LOG = logging.getLogger("anabranch")
_REFRESH_S = 0.5
_RECENT_S = 5.0
_SLOW_S = 1.0


class LiveStatus:
    """Displays the metrics of ``registry`` on ``console``.

    On a terminal it is a table that is refreshed twice a second; else a line per ``line_every_s``.
    """

    def __init__(
        self,
        pipeline: str,
        registry: CollectorRegistry,
        console: Console,
        *,
        line_every_s: float = 10.0,
    ) -> None:
        self._pipeline = pipeline
        self._registry = registry
        self._console = console
        self._line_every_s = line_every_s
        self._started = time.monotonic()
        self._recent: deque[tuple[float, Status]] = deque([(self._started, Status())])

    def status(self) -> Status:
        """Read the current status, and remember it for rates over the last seconds."""
        status, now = read_status(self._registry), time.monotonic()
        self._recent.append((now, status))
        while len(self._recent) > 2 and now - self._recent[0][0] > _RECENT_S:
            self._recent.popleft()
        return status

    def line(self) -> str:
        """The current status as one line of text."""
        status = self.status()
        quality = quality_line(status.quality)
        return (
            f"{self._pipeline}: {status.events:,.0f} events ({self._rate():,.0f}/s), "
            f"p50 / p99 {latencies(self._recent_latency())}, "
            f"{status.learned:,.0f} labels learned, {status.pending:,.0f} pending, "
            f"{sum(status.dead_letters.values()):,.0f} dead letters, "
            f"{sum(status.drift.values()):,.0f} drift signals, lag {status.lag:,.0f}"
            + (f"; {quality}" if quality else "")
        )

    @contextmanager
    def displayed(self) -> Iterator[None]:
        """Display the status while the ``with`` block runs."""
        with in_background(self._show_live if self._console.is_terminal else self._show_lines):
            yield

    def summary(self, elapsed_s: float | None = None) -> Status:
        """Print the final table, with the mean rate and latency of the whole run; return it."""
        status = read_status(self._registry)
        seconds = elapsed_s or time.monotonic() - self._started
        if structured():
            unjoined = unjoined_text(status)
            if unjoined is not None:
                LOG.warning(unjoined)
            self._record("ended", status, status.events / seconds)
            return status
        live = live_only(status.latency)
        table = status_table(self._pipeline, status, status.events / seconds, live, "live messages")
        self._console.print(table)
        advice = [unit_advice(topic, unit) for topic, unit in status.units.items()]
        for line in filter(None, (*advice, unjoined_text(status))):
            self._console.print(line, style="bold yellow", highlight=False, soft_wrap=True)
        return status

    def _table(self) -> Table:
        status = self.status()
        latency = self._recent_latency()
        return status_table(self._pipeline, status, self._rate(), latency, f"last {_RECENT_S:g} s")

    def _rate(self) -> float:
        (then, before), (now, status) = self._recent[0], self._recent[-1]
        return (status.events - before.events) / max(now - then, 1e-9)

    def _recent_latency(self) -> Buckets:
        return since(self._recent[-1][1].latency, self._recent[0][1].latency)

    def _show_live(self, done: threading.Event) -> None:
        with Live(console=self._console, auto_refresh=False, transient=True) as live:
            while not done.wait(_REFRESH_S):
                live.update(self._table(), refresh=True)

    def _show_lines(self, done: threading.Event) -> None:
        while not done.wait(self._line_every_s):
            line = self.line()
            if structured():
                self._record(line, self._recent[-1][1], self._rate())
            else:
                self._console.print(line, highlight=False, soft_wrap=True)

    def _record(self, text: str, status: Status, rate: float) -> None:
        record(
            text, events=int(status.events), events_per_s=round(rate), learned=int(status.learned),
            pending=int(status.pending), dead_letters=int(sum(status.dead_letters.values())),
            drift_signals=int(sum(status.drift.values())), lag=int(status.lag),
            quality={quality_title(name): value for name, value in status.quality.items()},
        )  # fmt: skip


@contextmanager
def compiling(console: Console) -> Iterator[None]:
    """Display that kernels are being compiled if the ``with`` block takes more than a second."""
    started = time.monotonic()
    text = "compiling kernels (only the first time on this machine, about half a minute) …"

    def display(done: threading.Event) -> None:
        if done.wait(_SLOW_S):
            return
        if not console.is_terminal:
            console.print(text, highlight=False, soft_wrap=True)
            return
        with console.status(text):
            done.wait()

    with in_background(display):
        yield
    seconds = time.monotonic() - started
    if seconds > _SLOW_S:
        console.print(f"kernels compiled in {seconds:.0f} s", highlight=False)
