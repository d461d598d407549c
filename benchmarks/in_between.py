"""The hot path's pipeline as a program between two topics, for `benchmarks.echo.measure`."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import msgspec

from benchmarks.echo import Wire
from benchmarks.hotpath import make_pipeline
from dataflows.bus import open_bus


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
def pipeline_between(url: str, source: str, target: str) -> Iterator[None]:
    """A worker process that reads ``NAME.events`` and publishes ``NAME.predictions``."""
    name = source.removesuffix(".events")
    assert target == f"{name}.predictions"
    spawn = multiprocessing.get_context("spawn")
    ready = spawn.Event()
    worker = spawn.Process(target=_work, args=(url, name, ready), daemon=True)
    worker.start()
    try:
        if not ready.wait(120):
            raise RuntimeError("the pipeline did not start")
        time.sleep(1.0)
        yield
    finally:
        worker.terminate()
        worker.join()


def _work(url: str, name: str, ready: Any) -> None:
    from dataflows.intake import IntakeOptions
    from dataflows.warmup import warm
    from dataflows.worker import run_worker

    pipeline = replace(make_pipeline(), name=name)
    warm(pipeline)
    ready.set()
    run_worker(pipeline, open_bus(url), IntakeOptions())
