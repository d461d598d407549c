"""Finds the name that was probably meant: of a field that is missing, and of a column with ids."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from difflib import SequenceMatcher

_CLOSE = 0.75
_IDS = {"id", "ids", "uuid", "guid", "uid", "oid", "pk", "key", "identifier", "identity", "rowid"}
_ID_ENDING = re.compile(
    r"[_\W](?i:id|uuid|guid|key|identifier)$|(?<=[a-z0-9])(?:Id|ID|Uuid|UUID|Guid|GUID|Key)$"
)


def similar_name(name: str, present: Iterable[str]) -> str | None:
    """The name among ``present`` that is written most like ``name``; None if none is close.

    >>> similar_name("amount", ["ts", "amout", "card"]), similar_name("cardId", ["card_id"])
    ('amout', 'card_id')
    >>> similar_name("amount", ["country"])
    """
    wanted, best, closest = _bare(name), None, _CLOSE
    for each in present:
        found = _bare(each)
        share = 1.0 if found == wanted else SequenceMatcher(None, wanted, found).ratio()
        if share > closest or (best is None and share == closest):
            best, closest = each, share
    return best


def id_columns(name: str, columns: Iterable[str], declared: Collection[str] = ()) -> list[str]:
    """The columns that may hold the id called ``name``, the likeliest first.

    Those that are ``declared`` as other fields are none.

    >>> id_columns("id", ["ts", "customer_id", "ID", "amount"], ["customer_id"])
    ['ID']
    >>> id_columns("id", ["orderId", "uuid", "paid"])
    ['uuid', 'orderId']
    """
    others = [each for each in columns if each not in declared and each != name]
    same = [each for each in others if _bare(each) == _bare(name)]
    plain = [each for each in others if _bare(each) in _IDS]
    ending = [each for each in others if _ID_ENDING.search(each)]
    return list(dict.fromkeys([*same, *plain, *ending]))


def _bare(name: str) -> str:
    return re.sub(r"[\W_]", "", name).lower()
