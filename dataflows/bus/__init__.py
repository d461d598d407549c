"""Where topics live: one small protocol, and several implementations behind one URL.

``sqlite:PATH`` is the embedded bus (`dataflows.bus.embedded.bus`), ``kafka://HOST:PORT[,HOST:PORT…]``
is a Kafka cluster (`dataflows.bus.kafka.bus`). The rest of the program uses only the protocol
(`dataflows.bus.protocol`).
"""

from __future__ import annotations

from collections.abc import Mapping

from anabranch.dataflows.bus.kafka_urls import redacted
from anabranch.dataflows.bus.protocol import (
    AdminBus,
    Bus,
    OnOutOfRange,
    Publisher,
    Reader,
    Slice,
    TopicLimits,
    TopicPartition,
    UnreachableError,
)
from anabranch.dataflows.bus.registry_settings import take_registry_settings
from anabranch.state.errors import BusError

__all__ = [
    "AdminBus",
    "Bus",
    "BusError",
    "OnOutOfRange",
    "Publisher",
    "Reader",
    "Slice",
    "TopicLimits",
    "TopicPartition",
    "UnreachableError",
    "open_bus",
]


def open_bus(url: str, settings: Mapping[str, str] | None = None) -> AdminBus:
    """Open the bus that ``url`` names; ``settings`` are librdkafka's, for ``kafka://`` only.

    Those that begin with ``schema.registry.`` are for schema registries, whatever the bus.

    Raises:
        BusError: the URL names no bus, or the bus cannot be reached.
    """
    settings = take_registry_settings(settings)
    if url.startswith("sqlite:"):
        from anabranch.dataflows.bus.embedded.bus import EmbeddedBus

        if settings:
            raise BusError("bus settings are for kafka:// only; sqlite: takes none")
        return EmbeddedBus(url.removeprefix("sqlite:"))
    if url.startswith("kafka://"):
        from anabranch.dataflows.bus.kafka.bus import KafkaBus

        return KafkaBus(url.removeprefix("kafka://"), settings)
    raise BusError(
        f"{redacted(url)!r} is not a bus: write sqlite:PATH for the embedded bus or "
        "kafka://HOST:PORT[,HOST:PORT…] for Kafka"
    )
