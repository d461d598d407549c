"""Which labels of a sample find their events, and what stands between those that do not."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from anabranch.dataflows.batch.row_ids import event_id
from anabranch.dataflows.check.verdicts import Verdicts
from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.messages.inputs import Delayed

_EXAMPLES = 3
_WAYS: dict[str, Callable[[str], str]] = {
    "in capital letters": str.lower,
    "in blanks around them": str.strip,
    "in a decimal point": lambda text: text.removesuffix(".0"),
    "in leading zeros": lambda text: text.lstrip("0"),
    "in what is around their digits": lambda text: "".join(re.findall(r"\d+", text)).lstrip("0"),
}
"""How two ids of one event may differ → a function that removes the difference."""


@dataclass(slots=True)
class JoinReport:
    """Labels joined to the events of a sample by their ids.

    Attributes:
        labels, events: how many of each there are, without dead letters.
        joined: labels whose event is in the sample.
        of_refused: other labels whose event is there, and would be a dead letter.
        complete: whether the sample has all events, so that the others are joined by none.
        label_ids, event_ids: examples of labels without an event, and of events.
        differ: how the ids of both sides differ, where that is plain.
        before_event, after_timeout: joined labels that are earlier than their event, and that came
            after the timeout.
        median_delay_ms: time from an event to its label.
        repeated: labels whose id has a label already.
        without_value: labels whose target is null.
    """

    labels: int
    events: int
    joined: int
    complete: bool
    label_ids: list[str]
    event_ids: list[str]
    of_refused: int = 0
    differ: str | None = None
    before_event: int = 0
    after_timeout: int = 0
    median_delay_ms: int | None = None
    repeated: int = 0
    without_value: int = 0

    @property
    def finds_nothing(self) -> bool:
        """Whether there are labels, and none joins an event."""
        return self.labels > 0 and self.joined == 0

    @property
    def refused(self) -> int:
        """How many labels would be dead letters."""
        alone = self.labels - self.joined if self.complete or self.finds_nothing else 0
        return alone + self.repeated + self.without_value + self.after_timeout


def join(
    pipeline: Pipeline,
    events: Verdicts,
    labels: Verdicts,
    complete: bool,
    refused_ids: Collection[str] = (),
) -> JoinReport:
    """Join the labels of a sample to its events; ``refused_ids`` are those of its dead letters."""
    assert isinstance(pipeline.label, Delayed)
    rules = pipeline.label.rules()
    own = list(labels.ids) if pipeline.candidates is None else list(map(event_id, labels.ids))
    time_of = dict(zip(events.ids, events.times.tolist(), strict=True))
    unjoined = [each for each in own if each not in time_of]
    others = set(refused_ids)
    alone = [each for each in unjoined if each not in others]
    report = JoinReport(
        labels=len(own),
        events=len(events.ids),
        joined=len(own) - len(unjoined),
        of_refused=len(unjoined) - len(alone),
        complete=complete,
        label_ids=_some(alone),
        event_ids=_some([*events.ids, *refused_ids]),
        differ=_difference(alone, [*time_of, *others]) if alone else None,
        without_value=sum(value is None for value in labels.values),
    )
    if pipeline.label.late != "update" and pipeline.candidates is None:
        report.repeated = len(own) - len(set(own))
    delays = np.array(
        [
            at - time_of[each]
            for each, at in zip(own, labels.times.tolist(), strict=True)
            if each in time_of
        ],
        np.int64,
    )
    if len(delays):
        report.median_delay_ms = int(np.median(delays))
        report.before_event = int((delays < 0).sum())
        limit = rules.timeout_ms if rules.update_ms is None else None
        report.after_timeout = 0 if limit is None else int((delays > limit).sum())
    return report


def _some(ids: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(ids))[:_EXAMPLES]


def _difference(alone: Sequence[str], events: Iterable[str]) -> str | None:
    """The way in which the ids of most labels without an event differ from those of events."""
    known, found = set(events), Counter[str]()
    for way, plain in _WAYS.items():
        of_events = {plain(each) for each in known} - {""}
        found[way] = sum(plain(each) in of_events for each in alone)
    way, count = max(found.items(), key=lambda item: item[1])
    return way if 2 * count > len(alone) else None
