"""Assigns messages to partitions: by key as Kafka's Java client does, or round-robin.

Both buses agree with every Kafka producer that uses the Java client's default, so a key is on the
same partition whichever program published it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import njit
from numpy.typing import NDArray

from anabranch.state.errors import BusError

__all__ = ["Partitioner", "partition_of_key", "partitions_of_keys"]


@njit(cache=True, nogil=True)
def _partitions(
    data: NDArray[np.uint8], sizes: NDArray[np.int64], count: int, out: NDArray[np.int64]
) -> None:
    """``toPositive(murmur2(key)) % count`` of keys that are concatenated in ``data``.

    Source: ``org.apache.kafka.common.utils.Utils.murmur2`` (seed 0x9747b28c); 32-bit arithmetic is
    done in 64 bits and masked.
    """
    low = np.uint64(0xFFFFFFFF)
    m = np.uint64(0x5BD1E995)
    start = 0
    for row in range(len(sizes)):
        size = sizes[row]
        h = np.uint64(0x9747B28C) ^ np.uint64(size)
        whole = size - size % 4
        for at in range(start, start + whole, 4):
            k = np.uint64(data[at]) | np.uint64(data[at + 1]) << np.uint64(8)
            k |= np.uint64(data[at + 2]) << np.uint64(16) | np.uint64(data[at + 3]) << np.uint64(24)
            k = (k * m) & low
            k ^= k >> np.uint64(24)
            h = ((h * m) & low) ^ ((k * m) & low)
        if size > whole:
            for at in range(size - 1, whole - 1, -1):
                h ^= np.uint64(data[start + at]) << np.uint64(8 * (at - whole))
            h = (h * m) & low
        h ^= h >> np.uint64(13)
        h = (h * m) & low
        h ^= h >> np.uint64(15)
        out[row] = np.int64(h & np.uint64(0x7FFFFFFF)) % count
        start += size


def partitions_of_keys(keys: Sequence[bytes], partitions: int) -> NDArray[np.int64]:
    """The partition of each key, ``(len(keys),) int64`` in ``[0, partitions)``."""
    sizes = np.fromiter(map(len, keys), np.int64, len(keys))
    out = np.empty(len(keys), np.int64)
    _partitions(np.frombuffer(b"".join(keys), np.uint8), sizes, partitions, out)
    return out


def partition_of_key(key: bytes, partitions: int) -> int:
    """The partition of one key: ``toPositive(murmur2(key)) % partitions``.

    >>> partition_of_key(b"card-7", 8)
    6
    """
    return int(partitions_of_keys([key], partitions)[0])


class Partitioner:
    """Assigns the messages of one publisher to the ``count`` partitions of one topic."""

    def __init__(self, topic: str, count: int) -> None:
        self.topic = topic
        self.count = count
        self._next = 0

    def assign(
        self,
        rows: int,
        keys: Sequence[bytes | None] | None,
        partitions: Sequence[int] | int | None,
    ) -> NDArray[np.int64] | int:
        """The partition of each of ``rows`` messages, or one number if it is the same for all.

        Raises:
            BusError: a partition does not exist, or the columns differ in length.
        """
        if keys is not None:
            self.check_length("keys", len(keys), rows)
        if partitions is None:
            return self._by_key_or_round_robin(rows, keys)
        if isinstance(partitions, (int, np.integer)):
            self._check_range(int(partitions), int(partitions))
            return int(partitions)
        self.check_length("partitions", len(partitions), rows)
        numbers = np.asarray(partitions, np.int64)
        if rows:
            self._check_range(int(numbers.min()), int(numbers.max()))
        return numbers

    def check_length(self, column: str, length: int, rows: int) -> None:
        """Raise `BusError` if a column is not as long as the values."""
        if length != rows:
            raise BusError(f"append to {self.topic}: {rows} values but {length} {column}")

    def _by_key_or_round_robin(
        self, rows: int, keys: Sequence[bytes | None] | None
    ) -> NDArray[np.int64] | int:
        if self.count == 1:
            return 0
        if keys is None:
            return self._round_robin(rows)
        present = [key for key in keys if key is not None]
        by_key = partitions_of_keys(present, self.count)
        if len(present) == rows:
            return by_key
        keyed = np.fromiter((key is not None for key in keys), np.bool_, rows)
        out = np.empty(rows, np.int64)
        out[keyed] = by_key
        out[~keyed] = self._round_robin(rows - len(present))
        return out

    def _round_robin(self, rows: int) -> NDArray[np.int64]:
        out = (np.arange(rows, dtype=np.int64) + self._next) % self.count
        self._next = (self._next + rows) % self.count
        return out

    def _check_range(self, lowest: int, highest: int) -> None:
        for partition in (lowest, highest):
            if not 0 <= partition < self.count:
                raise BusError(
                    f"topic {self.topic} has partitions 0 to {self.count - 1}, not {partition}"
                )
