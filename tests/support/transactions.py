"""Transactions on a topic: committed, aborted, or left open, as other producers leave them."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from types import TracebackType
from typing import Literal, Self

from confluent_kafka import Producer

from anabranch.dataflows.bus import open_bus
from tests.support.waiting import wait_until

Outcome = Literal["commit", "abort", "open"]


class Transactions:
    """A transactional producer; a context manager, which aborts what is left open."""

    def __init__(self, url: str) -> None:
        name = f"transactions-{uuid.uuid4().hex[:8]}"
        self._producer = Producer(
            {
                "bootstrap.servers": url.removeprefix("kafka://"),
                "transactional.id": name,
                "log_level": 0,
            }
        )
        self._producer.init_transactions(30)
        self._bus = open_bus(url)
        self._open: set[str] = set()  # topics of the transaction

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end("abort")

    def write(
        self,
        topic: str,
        values: Sequence[bytes],
        outcome: Outcome,
        partition: int = 0,
        keys: Sequence[bytes] | None = None,
    ) -> None:
        """Write into the transaction that is open, or a new one, and end that as told."""
        if not self._open:
            self._producer.begin_transaction()
        self._open.add(topic)
        for row, value in enumerate(values):
            key = None if keys is None else keys[row]
            self._producer.produce(topic, value, key, partition)
        self._producer.flush(30)
        if outcome != "open":
            self.end(outcome)

    def end(self, outcome: Literal["commit", "abort"]) -> None:
        """End the transaction that is open, if any, and wait for its markers."""
        if not self._open:
            return
        end = self._producer.commit_transaction
        (end if outcome == "commit" else self._producer.abort_transaction)(30)
        for topic in self._open:
            # The broker answers before it has written them.
            wait_until(lambda topic=topic: not self._bus.open_transactions(topic))
        self._open.clear()
