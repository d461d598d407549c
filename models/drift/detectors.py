"""Concept drift: River's detectors on a loss or a feature, value by value, with a cool-down.

The detectors are those of `DETECTORS`. To add one, add its entry there.
"""

from __future__ import annotations

import inspect
import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from river import drift

from anabranch.state.durations import parse_duration_ms
from anabranch.state.errors import DeclarationError

LOSS: Final = "loss"
"""The subject of a monitor on the loss of the served model, label by label."""

_SEED = 1  # a detector that draws random numbers must draw the same after a restart


@dataclass(frozen=True, slots=True)
class Detector:
    """One of River's detectors.

    Attributes:
        river: its class.
        errors_only: it takes only 0 and 1, so it monitors only the loss "error".
        defaults: parameters other than River's defaults.
        statistic: what an alarm reports of the detector; None: the change of the mean.
    """

    river: type
    errors_only: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)
    statistic: Callable[[Any], float] | None = None


def _p_value(detector: drift.KSWIN) -> float:
    return float(detector.p_value)


def _cumulative_sum(detector: drift.PageHinkley) -> float:
    increase = detector._sum_increase - detector._min_increase
    decrease = detector._max_decrease - detector._sum_decrease
    return float(max(increase, decrease))


DETECTORS: Final[dict[str, Detector]] = {
    "ADWIN": Detector(drift.ADWIN),
    "PageHinkley": Detector(drift.PageHinkley, statistic=_cumulative_sum),
    "KSWIN": Detector(drift.KSWIN, defaults={"seed": _SEED}, statistic=_p_value),
    "DDM": Detector(drift.binary.DDM, errors_only=True),
    "EDDM": Detector(drift.binary.EDDM, errors_only=True),
    "HDDM_A": Detector(drift.binary.HDDMA, errors_only=True),
    "HDDM_W": Detector(drift.binary.HDDMW, errors_only=True),
}
"""The detectors that a monitor can use, by name."""

_BY_RIVER_NAME = {detector.river.__name__: name for name, detector in DETECTORS.items()}


@dataclass(frozen=True)
class Monitor:
    """The declaration of a drift monitor; `monitor` returns it.

    Attributes:
        subject: `"loss"` or the name of a feature.
        detector: the name of the detector, one of `DETECTORS`.
        parameters: of the detector, by River's names.
        cooldown_ms: after an alarm, this much event time passes before the next one.
        loss: which loss, for the subject `"loss"`; None for the task's default.
        by: the slice whose groups are monitored separately.
    """

    subject: str
    detector: str
    parameters: Mapping[str, Any]
    cooldown_ms: int
    loss: str | None = None
    by: str | None = None

    @property
    def errors_only(self) -> bool:
        """Whether it can monitor only the loss "error"."""
        return DETECTORS[self.detector].errors_only


def monitor(
    subject: str,
    detector: str = "ADWIN",
    cooldown: str = "1h",
    loss: str | None = None,
    by: str | None = None,
    **parameters: Any,
) -> Monitor:
    """Declare a drift monitor on `"loss"` or on a feature.

    ADWIN (Bifet & Gavaldà 2007) does not depend on the scale and detects both directions.
    PageHinkley (Page 1954) is smaller, but its `threshold` is in units of the value: on errors at a
    steady rate of 20 %, its default of 50 gives about 60 false alarms per million, 150 about 2,
    ADWIN none. KSWIN (Raab et al. 2020) detects changes of shape, by a Kolmogorov–Smirnov test of
    the newest values.

    DDM (Gama et al. 2004), EDDM (Baena-García et al. 2006), HDDM_A and HDDM_W (Frías-Blanco et al.
    2015) take only whether a prediction was wrong, so the loss `"error"`. EDDM is for errors that
    are rare and grow slowly. False alarms per million labels at steady error rates of 20 % and 2 %,
    without a cool-down: ADWIN, DDM and HDDM_A none, EDDM 15 and 108, KSWIN 25 and none, HDDM_W 76
    and none.

    Args:
        subject: `"loss"` or the name of a feature.
        detector: its name, as in `river.drift` and `river.drift.binary`.
        cooldown: event time during which further alarms are suppressed.
        loss: see `losses.losses`; for the subject `"loss"` only.
        by: the name of a slice (`slices.slice_by`): each of its groups has a detector of its own,
            which signals when the loss there has increased; for the subject `"loss"` only.
        parameters: of the detector: `delta=0.002`, `threshold=50`, and so on.

    Raises:
        DeclarationError: no such detector, parameter or duration.

    >>> monitor("loss", delta=0.01).detector
    'ADWIN'
    >>> monitor("amount", "Adwin")
    Traceback (most recent call last):
    ...
    anabranch.state.errors.DeclarationError: unknown detector 'Adwin' in monitor('amount'): \
there are ADWIN, PageHinkley, KSWIN, DDM, EDDM, HDDM_A, HDDM_W
    """
    where = f"in monitor({subject!r})"
    detector = _BY_RIVER_NAME.get(detector, detector)
    _check_detector(detector, parameters, where)
    for what, value in (("loss", loss), ("by", by)):
        if value is not None and subject != LOSS:
            raise DeclarationError(
                f"{what}={value!r} {where} has no meaning: its subject is a feature"
            )
    chosen = DETECTORS[detector]
    if chosen.errors_only and (subject != LOSS or loss not in (None, "error")):
        others = ", ".join(name for name, each in DETECTORS.items() if not each.errors_only)
        raise DeclarationError(
            f"{detector} {where} takes only right and wrong, so the loss 'error': use {others} for "
            "other numbers"
        )
    parameters = {**chosen.defaults, **parameters}
    try:
        chosen.river(**parameters)
    except (TypeError, ValueError) as error:
        raise DeclarationError(f"{detector} {where} can't be created: {error}") from error
    return Monitor(subject, detector, parameters, parse_duration_ms(cooldown), loss, by)


def _check_detector(name: str, parameters: Mapping[str, Any], where: str) -> None:
    if name not in DETECTORS:
        raise DeclarationError(
            f"unknown detector {name!r} {where}: there are {', '.join(DETECTORS)}"
        )
    allowed = list(inspect.signature(DETECTORS[name].river).parameters)
    for parameter in parameters:
        if parameter not in allowed:
            raise DeclarationError(
                f"unknown parameter {parameter!r} {where}: {name} has {', '.join(allowed)}"
            )


@dataclass(frozen=True)
class Alarm:
    """A change that a detector has signalled.

    Attributes:
        subject: what is monitored.
        detector: its name.
        time: event time of the value at which it was signalled, ms.
        statistic: the change of the mean, `after - before`. PageHinkley: the cumulative sum that
            exceeded the threshold; KSWIN: the p-value.
        before: mean of the values since the detector last restarted, without the newest 32.
        after: mean of the newest 32 values. A detector is often faster than that, so part of them
            may be from before the change: the true step is at least this large.
        seen: values that the detector has been given so far.
        row: index of the value in the call that signalled it; not part of equality.
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
    def change(self) -> str:
        """The change in words."""
        if math.isnan(self.before):
            return f"{self.statistic:.3g}"
        return f"from {self.before:.3g} to {self.after:.3g}"

    @property
    def increased(self) -> bool:
        """Whether the values have increased: of a loss, the model has become worse."""
        return self.after > self.before


class DriftMonitor:
    """A running monitor. It skips NaN and infinity, after which a detector would never signal.

    The same values give the same alarms, however they are split into calls. It can be pickled, and
    the copy continues identically.

    Args:
        declared: what to monitor, and how.
        model: whose loss that is, where there are several models.

    Attributes:
        monitor: the declaration.
        model: see above.
        seen: values so far.

    >>> running = DriftMonitor(monitor("loss"))
    >>> values = np.repeat([0.0, 1.0], 500)
    >>> alarms = running.update_many(values, np.arange(1000))
    >>> [(alarm.time, alarm.before, round(alarm.after, 2)) for alarm in alarms]
    [(511, 0.0, 0.38)]
    """

    def __init__(self, declared: Monitor, model: str = "") -> None:
        self.monitor = declared
        self.model = model
        self.seen = 0
        self._detector = DETECTORS[declared.detector].river(**declared.parameters)
        self._quiet_until: int | None = None
        # Of the values since the detector last restarted.
        self._count = 0
        self._total = 0.0
        self._newest: deque[float] = deque(maxlen=32)

    @property
    def recent_mean(self) -> float:
        """Mean of the newest 32 values; NaN before the first."""
        return sum(self._newest) / len(self._newest) if self._newest else math.nan

    def update_many(
        self, values: NDArray[np.float64], times: NDArray[np.int64], stop: bool = False
    ) -> list[Alarm]:
        """Take values in order; returns the alarms.

        Args:
            values: `(n,) float64`.
            times: `(n,) int64`, event time in ms, by which the cool-down runs.
            stop: take no more values after an alarm of values that have increased.
        """
        alarms: list[Alarm] = []
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
            if detector.drift_detected and self._on_drift(alarms, int(times[row]), row) and stop:
                break
        return alarms

    def _on_drift(self, alarms: list[Alarm], time: int, row: int) -> bool:
        """Add an alarm, unless one was given shortly before; whether it is one of an increase."""
        increased = False
        if self._quiet_until is None or time >= self._quiet_until:
            self._quiet_until = time + self.monitor.cooldown_ms
            alarms.append(self._alarm(time, row))
            increased = alarms[-1].increased
        # River's detectors restart at the value after a detection.
        self._count, self._total = 0, 0.0
        self._newest.clear()
        return increased

    def _alarm(self, time: int, row: int) -> Alarm:
        newest = sum(self._newest)
        after = newest / len(self._newest)
        older = self._count - len(self._newest)
        before = (self._total - newest) / older if older else after
        statistic = DETECTORS[self.monitor.detector].statistic
        return Alarm(
            subject=self.monitor.subject,
            detector=self.monitor.detector,
            time=time,
            statistic=after - before if statistic is None else statistic(self._detector),
            before=before,
            after=after,
            seen=self.seen,
            row=row,
            kind=LOSS if self.monitor.subject == LOSS else "feature",
        )
