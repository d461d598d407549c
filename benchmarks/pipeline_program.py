"""The hot path's pipeline as a program between two topics, for `benchmarks.echo.measure`."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from anabranch.dataflows.bus import open_bus
from benchmarks.echo import Wire
from benchmarks.hotpath import make_pipeline


def _payment(n: int) -> bytes:
    return msgspec.json.encode(
        {
            "id": str(n),
            "ts": int(time.time() * 1000),
            "card": f"card-{n * 7919 % 1000}",
            "merchant": f"shop-{n * 104729 % 300}",
            "amount": float(n % 97),
            "fraud": n % 20 == 0,
        }
    )


PAYMENTS = Wire(_payment, lambda value: int(msgspec.json.decode(value)["id"]))


@contextmanager
def pipeline_between(
    url: str, source: str, target: str, *, state: Path | None = None, epoch_s: float = 5.0
) -> Iterator[None]:
    """A worker process that reads ``NAME.events`` and publishes ``NAME.predictions``.

    Its state is in the directory ``state``, or in memory if that is None.
    """
    name = source.removesuffix(".events")
    assert target == f"{name}.predictions"
    spawn = multiprocessing.get_context("spawn")
    ready = spawn.Event()
    worker = spawn.Process(target=_work, args=(url, name, state, epoch_s, ready), daemon=True)
    worker.start()
    try:
        if not ready.wait(120):
            raise RuntimeError("the pipeline did not start")
        time.sleep(1.0)
        yield
    finally:
        worker.terminate()
        worker.join()


def _work(url: str, name: str, path: Path | None, epoch_s: float, ready: Any) -> None:
    from anabranch.dataflows.recovery.state_directory import StateDirectory
    from anabranch.dataflows.runtime.worker import run_worker
    from anabranch.dataflows.source.bus_source import SourceOptions
    from anabranch.dataflows.steps.warmup import warm

    pipeline = replace(make_pipeline(), name=name)
    warm(pipeline)
    bus = open_bus(url)
    state = None if path is None else StateDirectory.open(path, pipeline, bus)
    ready.set()
    with state or nullcontext():
        run_worker(pipeline, bus, SourceOptions(), checkpoint_interval_s=epoch_s, state=state)
