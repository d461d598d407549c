"""Verifies every checksum in the files of a RocksDB database, without opening it.

RocksDB verifies what it reads: blocks that hold only removed or superseded records, values that
nothing refers to any more, and a log whose end it drops, can be damaged unnoticed, and fail when
they are compacted months later. So the files are read here as what they are::

    *.sst        table: data blocks, index, meta blocks, each with a checksum; footer
    *.blob       values: header; records of header, key and value, with two CRCs each; footer
    *.log        write-ahead log: records with a CRC each, in blocks of 32 KiB
    MANIFEST-*   the same; which tables and blob files there are
    CURRENT      the name of the manifest

Formats: RocksDB's ``table/format.cc``, ``db/blob/blob_log_format.h`` and ``db/log_format.h``. Every
byte must belong to something that has a checksum. `OPTIONS-*`, `IDENTITY`, `LOCK` and `LOG` are not
read when a database is opened.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import google_crc32c
import xxhash

_TABLE_MAGIC = 0x88E241B785F4CFF7
_EXTENDED_MAGIC = bytes([0x3E, 0x00, 0x7A, 0x00])
_FOOTER = 53  # bytes, of all format versions that RocksDB has written since 2016
_TRAILER = 5  # bytes after a block: compression and checksum
_INDEX = b"rocksdb.index"
_CRC32C, _XXH32, _XXH64, _XXH3 = 1, 2, 3, 4

_BLOB_HEADER = struct.Struct("<IIIBBQQ")
_BLOB_RECORD = struct.Struct("<QQQII")
_BLOB_FOOTER = struct.Struct("<IQQQI")
_BLOB_MAGIC = 2395959

_LOG_BLOCK = 32 << 10
_LOG_HEADER = struct.Struct("<IHB")
_RECYCLABLE = {5, 6, 7, 8, 11, 131}  # their headers have four bytes more: the number of the log

_MANIFEST = re.compile(rb"MANIFEST-\d+\n")
_MASK = 0xFFFFFFFF


class _Damaged(Exception):
    """The file is damaged; the text says where."""


class _Handle(NamedTuple):
    """Where a block is in its table, without its trailer."""

    offset: int
    size: int

    @property
    def end(self) -> int:
        """The offset after its trailer."""
        return self.offset + self.size + _TRAILER


def verify_files(directory: Path) -> Iterator[tuple[Path, str]]:
    """Each damaged file of a database, and what is wrong with it.

    Files that are removed meanwhile, by a process that uses the database, are passed over.
    """
    for path in sorted(directory.iterdir()):
        verify = _verifier(path.name)
        if verify is None:
            continue
        try:
            verify(path.read_bytes())
            if path.name == "CURRENT" and not (directory / path.read_text().strip()).exists():
                raise _Damaged("the manifest that it names does not exist")
        except FileNotFoundError:
            continue
        except OSError as error:
            yield path, f"it can't be read: {error.strerror}"
        except _Damaged as error:
            if path.exists():
                yield path, str(error)
        except (struct.error, IndexError, ValueError, OverflowError):
            if path.exists():
                yield path, "its structure is not that of such a file"


def _verifier(name: str) -> Callable[[bytes], None] | None:
    if name.endswith(".sst"):
        return _verify_table
    if name.endswith(".blob"):
        return _verify_blobs
    if name.endswith(".log") or name.startswith("MANIFEST-"):
        return _verify_log
    if name == "CURRENT":
        return _verify_current
    return None


def _verify_current(content: bytes) -> None:
    if not _MANIFEST.fullmatch(content):
        raise _Damaged("it does not name a manifest")


def _verify_table(content: bytes) -> None:
    """Verify the footer, and all blocks that it leads to; they must fill the file."""
    footer_at = len(content) - _FOOTER
    if footer_at < 0:
        raise _Damaged("it is too short to be a table")
    footer = content[footer_at:]
    version, magic = struct.unpack("<IQ", footer[-12:])
    if magic != _TABLE_MAGIC or not 2 <= version <= 7:
        raise _Damaged("it does not end as a table does")
    table = _Table(content, footer[0], version)
    index = None
    if version >= 6:
        metaindex = table.read_footer(footer_at)
    else:
        metaindex, at = _handle(footer, 1)
        index, _ = _handle(footer, at)
    handles = [metaindex]
    for name, value in _entries(table.block(metaindex)):
        handle, _ = _handle(value, 0)
        handles.append(handle)
        table.check(handle)
        if name == _INDEX:
            index = handle
    if index is None:
        raise _Damaged("it has no index")
    if version < 6:
        handles.append(index)
    for handle in _index_handles(table.block(index), has_lengths=version < 4):
        handles.append(handle)
        table.check(handle)
    at = 0
    for handle in sorted(handles):
        if handle.offset != at:
            raise _Damaged(f"no block begins at byte {at}")
        at = handle.end
    if at != footer_at:
        raise _Damaged(f"no block begins at byte {at}")


class _Table:
    """The blocks of a table."""

    def __init__(self, content: bytes, checksum_type: int, version: int) -> None:
        self._content = content
        self._checksum_type = checksum_type
        self._version = version
        self._context = 0  # makes the checksum of a block depend on the table and on its place

    def read_footer(self, at: int) -> _Handle:
        """Verify a footer of format version 6 or 7; returns where the metaindex is."""
        footer = self._content[at:]
        stored, self._context, size = struct.unpack("<III", footer[5:17])
        blank = footer[:5] + bytes(4) + footer[9:]
        computed = _checksum(self._checksum_type, blank[:-1], blank[-1])
        if footer[1:5] != _EXTENDED_MAGIC or (computed + self._modifier(at)) & _MASK != stored:
            raise _Damaged("the checksum of its footer does not match")
        return _Handle(at - _TRAILER - size, size)

    def check(self, handle: _Handle) -> None:
        """Verify the checksum of a block."""
        if handle.offset < 0 or handle.end > len(self._content):
            raise _Damaged(f"the block at byte {handle.offset} goes beyond its end")
        end = handle.offset + handle.size
        compression, stored = struct.unpack("<BI", self._content[end : handle.end])
        data = memoryview(self._content)[handle.offset : end]
        computed = _checksum(self._checksum_type, data, compression)
        if (computed + self._modifier(handle.offset)) & _MASK != stored:
            raise _Damaged(f"the checksum of the block at byte {handle.offset} does not match")

    def block(self, handle: _Handle) -> bytes:
        """The contents of a block, verified and decompressed."""
        self.check(handle)
        end = handle.offset + handle.size
        data = self._content[handle.offset : end]
        compression = self._content[end]
        if compression == 0:
            return data
        if compression not in (4, 5):
            raise _Damaged(f"the block at byte {handle.offset} has compression {compression}")
        size, at = _varint(data, 0)
        return _decompress(data[at:], size)

    def _modifier(self, offset: int) -> int:
        if not self._context:
            return 0
        return self._context ^ (((offset & _MASK) + (offset >> 32)) & _MASK)


def _checksum(kind: int, data: bytes | memoryview, last: int) -> int:
    """Of a block and the byte that follows it (its compression)."""
    if kind == _XXH3:
        return int(xxhash.xxh3_64_intdigest(data)) & _MASK ^ (last * 0x6B9083D9 & _MASK)
    whole = bytes(data) + bytes([last])
    if kind == _CRC32C:
        return _masked(google_crc32c.value(whole))
    if kind == _XXH32:
        return int(xxhash.xxh32_intdigest(whole))
    if kind == _XXH64:
        return int(xxhash.xxh64_intdigest(whole)) & _MASK
    raise _Damaged(f"its checksums are of a kind ({kind}) that is not known")


def _masked(crc: int) -> int:
    """How RocksDB stores a CRC, so that a CRC of data that contains one is not a fixed value."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & _MASK


def _entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a block."""
    key, at, end = b"", 0, _restarts_at(block)
    while at < end:
        shared, at = _varint(block, at)
        own, at = _varint(block, at)
        length, at = _varint(block, at)
        key = key[:shared] + block[at : at + own]
        at += own
        yield key, block[at : at + length]
        at += length


def _index_handles(block: bytes, has_lengths: bool) -> Iterator[_Handle]:
    """The data blocks that an index lists.

    From format version 4 on there are no lengths of values, and a handle after another one that
    its key shares a prefix with is only the difference of the sizes.
    """
    last, at, end = _Handle(0, 0), 0, _restarts_at(block)
    while at < end:
        shared, at = _varint(block, at)
        own, at = _varint(block, at)
        if has_lengths:
            _, at = _varint(block, at)
        at += own
        if has_lengths or not shared:
            last, at = _handle(block, at)
        else:
            delta, at = _varint(block, at)
            last = _Handle(last.end, last.size + (delta >> 1 ^ -(delta & 1)))
        yield last


def _restarts_at(block: bytes) -> int:
    (count,) = struct.unpack("<I", block[-4:])
    at = len(block) - 4 - 4 * (int(count) & 0x7FFFFFFF)
    if at < 0:
        raise _Damaged("a block has more restart points than bytes")
    return at


def _handle(data: bytes, at: int) -> tuple[_Handle, int]:
    offset, at = _varint(data, at)
    size, at = _varint(data, at)
    return _Handle(offset, size), at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise _Damaged("a number in it is too long")


def _decompress(data: bytes, size: int) -> bytes:
    """Decompress an LZ4 block of ``size`` bytes; for indexes, which are small."""
    out, at = bytearray(), 0
    while at < len(data):
        token = data[at]
        length, at = _length(data, at + 1, token >> 4)
        out += data[at : at + length]
        at += length
        if at >= len(data):
            break
        distance = data[at] | data[at + 1] << 8
        length, at = _length(data, at + 2, token & 15)
        for _ in range(length + 4):  # it may reach into what it adds
            out.append(out[-distance])
    if len(out) != size:
        raise _Damaged("its index can't be decompressed")
    return bytes(out)


def _length(data: bytes, at: int, length: int) -> tuple[int, int]:
    more = 255 if length == 15 else 0
    while more == 255:
        more = data[at]
        length += more
        at += 1
    return length, at


def _verify_blobs(content: bytes) -> None:
    """Verify header and footer, and that records fill what is between them."""
    magic, version, family, flags, compression, *expiration = _BLOB_HEADER.unpack(
        content[: _BLOB_HEADER.size]
    )
    if (magic, version, family, flags, *expiration) != (_BLOB_MAGIC, 1, 0, 0, 0, 0):
        raise _Damaged("its header is not that of a blob file")
    if compression not in (0, 4):
        raise _Damaged(f"it has compression {compression}")
    view, at, count = memoryview(content), _BLOB_HEADER.size, 0
    footer_at = len(content) - _BLOB_FOOTER.size
    while at < footer_at:
        key, value, _, header_crc, blob_crc = _BLOB_RECORD.unpack_from(content, at)
        start, end = at + _BLOB_RECORD.size, at + _BLOB_RECORD.size + key + value
        if header_crc != _masked(google_crc32c.value(bytes(view[at : at + 24]))):
            raise _Damaged(f"the checksum of the record at byte {at} does not match")
        if end > footer_at or blob_crc != _masked(google_crc32c.value(bytes(view[start:end]))):
            raise _Damaged(f"the checksum of the value at byte {start} does not match")
        at, count = end, count + 1
    magic, stored, *_, crc = _BLOB_FOOTER.unpack(content[footer_at:])
    crc_of_it = _masked(google_crc32c.value(content[footer_at:-4]))
    if (at, magic, stored, crc) != (footer_at, _BLOB_MAGIC, count, crc_of_it):
        raise _Damaged("its footer does not match")


def _verify_log(content: bytes) -> None:
    """Verify all records; a last one that is incomplete is what a power failure leaves."""
    at, size = 0, len(content)
    while at < size:
        left = _LOG_BLOCK - at % _LOG_BLOCK
        if left < _LOG_HEADER.size:  # too little for a record: filled with zeros
            if any(content[at : at + left]):
                raise _Damaged(f"the padding at byte {at} is not zero")
            at += left
            continue
        if at + _LOG_HEADER.size > size:
            return
        stored, length, kind = _LOG_HEADER.unpack_from(content, at)
        if not (stored or length or kind):  # space that was allocated ahead
            if any(content[at:]):
                raise _Damaged(f"no record begins at byte {at}")
            return
        start = at + _LOG_HEADER.size
        end = start + length + 4 * (kind in _RECYCLABLE)
        if end - at > left:
            raise _Damaged(f"the record at byte {at} is longer than its block")
        if end > size:
            return
        if stored != _masked(google_crc32c.value(content[at + 6 : end])):
            raise _Damaged(f"the checksum of the record at byte {at} does not match")
        at = end
