"""Fixtures that several test files share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.kafka_broker import KafkaBroker, missing_tools

# The first example of a test may wait for a compiler, and any for a machine that is busy.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


@pytest.fixture(scope="session")
def kafka_broker() -> Iterator[KafkaBroker]:
    """One Kafka broker for the whole run, started when the first test asks for it.

    Skips only when Java or Maven is not installed; any other failure fails the test.
    """
    reason = missing_tools()
    if reason is not None:
        pytest.skip(reason)
    with KafkaBroker(fast_start=True) as broker:
        yield broker
