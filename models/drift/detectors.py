"""Concept drift: River's detectors on a loss or a feature, value by value, with a cool-down."""

from __future__ import annotations

import inspect
import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from river import drift

from anabranch.state.durations import parse_duration_ms
from anabranch.state.errors import DeclarationError

LOSS: Final = "loss"
"""The subject of a monitor that watches the loss of the served model, label by label."""

_OF_NUMBERS: dict[str, type] = {
    "ADWIN": drift.ADWIN, "PageHinkley": drift.PageHinkley, "KSWIN": drift.KSWIN,
}  # fmt: skip
_OF_ERRORS: dict[str, type] = {
    "DDM": drift.binary.DDM, "EDDM": drift.binary.EDDM,
    "HDDM_A": drift.binary.HDDMA, "HDDM_W": drift.binary.HDDMW,
}  # fmt: skip
_DETECTORS = _OF_NUMBERS | _OF_ERRORS
_RIVERS = {"HDDMA": "HDDM_A", "HDDMW": "HDDM_W"}
_SEED = 1  # a detector that draws must draw the same after a restart


@dataclass(frozen=True)
class Monitor:
    """Something to watch, and by what; made by `monitor`.

    Attributes:
        subject: `"loss"` or the name of a feature.
        detector: its name.
        parameters: of the detector, by River's names.
        cooldown_ms: after an alarm, this much event time passes before the next one.
        loss: which loss, for the subject `"loss"`; None for the task's default.
        by: the slice whose parts are watched apart.
    """

    subject: str
    detector: str
    parameters: Mapping[str, Any]
    cooldown_ms: int
    loss: str | None = None
    by: str | None = None


def monitor(
    subject: str,
    detector: str = "ADWIN",
    cooldown: str = "1h",
    loss: str | None = None,
    by: str | None = None,
    **parameters: Any,
) -> Monitor:
    """Declare a watch over `"loss"` or over a feature.

    ADWIN (Bifet & Gavaldà 2007) asks nothing of the scale and knows both directions. PageHinkley
    (Page 1954) is smaller, but its `threshold` is in units of the value: on errors at a steady rate
    of 20 %, its default of 50 gives about 60 false alarms per million, 150 about 2, ADWIN none.
    KSWIN (Raab et al. 2020) sees changes of shape, by a Kolmogorov–Smirnov test of the newest
    values.

    DDM (Gama et al. 2004), EDDM (Baena-García et al. 2006), HDDM_A and HDDM_W (Frías-Blanco et al.
    2015) look at whether answers were wrong, so at the loss `"error"` only. EDDM is for errors that
    are rare and grow slowly. False alarms per million labels at steady error rates of 20 % and 2 %,
    without a cool-down: ADWIN, DDM and HDDM_A none, EDDM 15 and 108, KSWIN 25 and none, HDDM_W 76
    and none.

    Args:
        subject: `"loss"` or the name of a feature.
        detector: its name, as in `river.drift` and `river.drift.binary`.
        cooldown: event time for which one change stays one alarm.
        loss: see `losses.losses`; for the subject `"loss"` only.
        by: the name of a slice (`slices.slice_by`): each of its parts has a detector of its own,
            which tells when the loss there has grown; for the subject `"loss"` only.
        parameters: of the detector: `delta=0.002`, `threshold=50`, and so on.

    Raises:
        DeclarationError: no such detector, parameter or duration.

    >>> monitor("loss", delta=0.01).detector
    'ADWIN'
    >>> monitor("amount", "Adwin")
    Traceback (most recent call last):
    ...
    state.errors.DeclarationError: unknown detector 'Adwin' in monitor('amount'): there are ADWIN, \
PageHinkley, KSWIN, DDM, EDDM, HDDM_A, HDDM_W
    """
    where = f"in monitor({subject!r})"
    detector = _RIVERS.get(detector, detector)
    kind = _DETECTORS.get(detector)
    if kind is None:
        raise DeclarationError(
            f"unknown detector {detector!r} {where}: there are {', '.join(_DETECTORS)}"
        )
    known = list(inspect.signature(kind).parameters)
    for name in parameters:
        if name not in known:
            raise DeclarationError(
                f"unknown parameter {name!r} {where}: {detector} has {', '.join(known)}"
            )
    for what, value in (("loss", loss), ("by", by)):
        if value is not None and subject != LOSS:
            raise DeclarationError(
                f"{what}={value!r} {where} has no meaning: its subject is a feature"
            )
    if detector in _OF_ERRORS and (subject != LOSS or loss not in (None, "error")):
        numbers = ", ".join(_OF_NUMBERS)
        raise DeclarationError(
            f"{detector} {where} looks at right and wrong, so at the loss 'error' only: take "
            f"{numbers} for other numbers"
        )
    if detector == "KSWIN":
        parameters = {"seed": _SEED, **parameters}
    try:
        kind(**parameters)
    except (TypeError, ValueError) as error:
        raise DeclarationError(f"{detector} {where} can't be made: {error}") from error
    return Monitor(subject, detector, parameters, parse_duration_ms(cooldown), loss, by)


def of_errors(declared: Monitor) -> bool:
    """Whether it looks at right and wrong alone."""
    return declared.detector in _OF_ERRORS


@dataclass(frozen=True)
class Alarm:
    """A change that a detector found.

    Attributes:
        subject: what was watched.
        detector: by what.
        time: event time of the value that gave the alarm, ms.
        statistic: the change of the mean, `after - before`. PageHinkley: the cumulative sum that
            passed the threshold; KSWIN: the p-value.
        before: mean of the values since the detector last began anew, without the newest 32.
        after: mean of the newest 32 values. A detector is often quicker than that, so part of them
            may be from before the change: the true step is at least this large.
        seen: values that the detector has been given so far.
        row: index of the value in the call that found it; no part of equality.
        kind: of the subject, as in a `DriftSignal`.
    """

    subject: str
    detector: str
    time: int
    statistic: float
    before: float
    after: float
    seen: int
    row: int = field(compare=False)
    kind: str = "loss"

    @property
    def told(self) -> str:
        """What has changed, for people."""
        if math.isnan(self.before):
            return f"{self.statistic:.3g}"
        return f"from {self.before:.3g} to {self.after:.3g}"

    @property
    def rises(self) -> bool:
        """Whether the values have grown: of a loss, the model has become worse."""
        return self.after > self.before


class Watch:
    """A monitor at work. NaN and infinity are passed over: one would leave a detector deaf.

    The same values give the same alarms, however they are cut into calls. It pickles, and the copy
    continues identically.

    Args:
        declared: what it watches, and how.
        model: whose loss that is, where there are several.

    >>> watch = Watch(monitor("loss"))
    >>> values = np.repeat([0.0, 1.0], 500)
    >>> alarms = watch.update_many(values, np.arange(1000))
    >>> [(alarm.time, alarm.before, round(alarm.after, 2)) for alarm in alarms]
    [(511, 0.0, 0.38)]
    """

    def __init__(self, declared: Monitor, model: str = "") -> None:
        self.monitor = declared
        self.model = model
        self.seen = 0
        self._detector = _DETECTORS[declared.detector](**declared.parameters)
        self._quiet_until: int | None = None
        # What the detector has been given since it last began anew.
        self._count = 0
        self._total = 0.0
        self._newest: deque[float] = deque(maxlen=32)

    @property
    def newest(self) -> float:
        """Mean of the newest 32 values; NaN before the first."""
        return sum(self._newest) / len(self._newest) if self._newest else math.nan

    def update_many(
        self, values: NDArray[np.float64], times: NDArray[np.int64], stop: bool = False
    ) -> list[Alarm]:
        """Look at values in order.

        Args:
            values: `(n,) float64`.
            times: `(n,) int64`, event time in ms; the cool-down runs by it.
            stop: look no further behind an alarm of values that have grown.
        """
        alarms: list[Alarm] = []
        stopped = False
        detector = self._detector
        update, keep = detector.update, self._newest.append
        for row, value in enumerate(values.tolist()):
            if not math.isfinite(value):
                continue
            self.seen += 1
            self._count += 1
            self._total += value
            keep(value)
            update(value)
            if detector.drift_detected:
                time = int(times[row])
                if self._quiet_until is None or time >= self._quiet_until:
                    self._quiet_until = time + self.monitor.cooldown_ms
                    alarms.append(self._alarm(time, row))
                    stopped = stop and alarms[-1].rises
                # River's detectors begin anew at the value after a detection.
                self._count, self._total = 0, 0.0
                self._newest.clear()
                if stopped:
                    break
        return alarms

    def _alarm(self, time: int, row: int) -> Alarm:
        detector, newest = self._detector, sum(self._newest)
        after = newest / len(self._newest)
        older = self._count - len(self._newest)
        before = (self._total - newest) / older if older else after
        statistic = after - before
        if isinstance(detector, drift.KSWIN):
            statistic = float(detector.p_value)
        elif isinstance(detector, drift.PageHinkley):
            statistic = max(
                detector._sum_increase - detector._min_increase,
                detector._max_decrease - detector._sum_decrease,
            )
        name = self.monitor.detector
        kind = LOSS if self.monitor.subject == LOSS else "feature"
        return Alarm(
            self.monitor.subject, name, time, statistic, before, after, self.seen, row, kind
        )  # fmt: skip
