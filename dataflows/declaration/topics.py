"""The topics of a pipeline: where its events and labels come from, and where its outputs go.

Each has the name that was given for it, or one that follows from the pipeline's name.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from anabranch.dataflows.bus.topic_names import check_topic
from anabranch.state.errors import BusError, DeclarationError, InputError

_SUFFIXES = {
    "events": "events",
    "labels": "labels",
    "predictions": "predictions",
    "drift": "drift",
    "dead_letters": "dead-letters",
    "control": "control",
    "rollouts": "rollouts",
}
ROLES = tuple(_SUFFIXES)
"""What a pipeline has topics for: the parameters of `Topics`."""

_INPUTS = ("events", "labels", "control")
_OF_ROLLOUTS = ("control", "rollouts")


@dataclass(frozen=True, slots=True)
class TopicPattern:
    """All topics whose whole name matches a regular expression; made by `pattern`.

    Attributes:
        expression: the regular expression.
    """

    expression: str

    def matches(self, topic: str) -> bool:
        """Whether the topic is one of them."""
        return re.fullmatch(self.expression, topic) is not None

    def __repr__(self) -> str:
        return f"pattern({self.expression!r})"


def pattern(expression: str) -> TopicPattern:
    """All topics whose whole name matches, when a run starts, as ``events=`` or ``labels=``.

    One that is created later is logged, and read from its first message on after the next start.

    >>> pattern(r"prod\\.orders\\..*").matches("prod.orders.eu")
    True

    Raises:
        DeclarationError: it is no regular expression.
    """
    try:
        re.compile(expression)
    except (re.error, TypeError) as error:
        raise DeclarationError(
            f"pattern({expression!r}) is no regular expression: {error}"
        ) from None
    return TopicPattern(expression)


Source = str | Sequence[str] | TopicPattern
"""Where an input is read: on a topic, on several, or on all that match a pattern."""


class Topics:
    """The names of a pipeline's topics; one that is left out is ``PIPELINE.events`` and so on.

    Args:
        events: where events are read: a topic, several, or a `pattern`.
        labels: where labels are read, likewise, if they arrive on topics of their own.
        predictions: where predictions, or rankings, are published.
        drift: where drift signals are published.
        dead_letters: where messages go that can't be used.
        control: where commands to rollouts are read.
        rollouts: where decisions about rollouts are published.
        labels_bus: the URL of the bus with the labels, if it is another than that of the events.
        labels_bus_config: the file of its librdkafka settings, as ``--bus-config`` takes it.

    >>> topics = Topics(events="prod.orders.v2").named("risk")
    >>> topics.events, topics.predictions, topics.dead_letters
    ('prod.orders.v2', 'risk.predictions', 'risk.dead-letters')
    """

    def __init__(
        self,
        *,
        events: Source | None = None,
        labels: Source | None = None,
        predictions: str | None = None,
        drift: str | None = None,
        dead_letters: str | None = None,
        control: str | None = None,
        rollouts: str | None = None,
        labels_bus: str | None = None,
        labels_bus_config: str | None = None,
    ) -> None:
        self.labels_bus, self.labels_bus_config = labels_bus, labels_bus_config
        names = (events, labels, predictions, drift, dead_letters, control, rollouts)
        pairs = zip(ROLES, names, strict=True)
        self._given: dict[str, Source] = {role: name for role, name in pairs if name is not None}
        self._found: dict[str, tuple[str, ...]] = {}  # role → the topics that match its pattern
        self._pipeline = "PIPELINE"
        self._has_rollouts = False

    def named(self, pipeline: str, has_rollouts: bool = False) -> Topics:
        """The topics of the pipeline of this name; ``has_rollouts``: with those of rollouts."""
        topics = Topics()
        topics._given, topics._found = self._given, self._found
        topics.labels_bus, topics.labels_bus_config = self.labels_bus, self.labels_bus_config
        topics._pipeline, topics._has_rollouts = pipeline, has_rollouts
        return topics

    @property
    def given(self) -> dict[str, Source]:
        """What was given, by role."""
        return dict(self._given)

    @property
    def events(self) -> str:
        """The topic of events; the first of several, see `all_events`."""
        return self.all_events[0]

    @property
    def labels(self) -> str:
        """The topic of labels; the first of several, see `all_labels`."""
        return self.all_labels[0]

    @property
    def all_events(self) -> tuple[str, ...]:
        """The topics of events, in order; of a pattern, once `resolved` has found them."""
        return self._inputs("events")

    @property
    def all_labels(self) -> tuple[str, ...]:
        """The topics of labels, likewise."""
        return self._inputs("labels")

    @property
    def patterns(self) -> dict[str, TopicPattern]:
        """The patterns that were given, by role."""
        return {role: of for role, of in self._given.items() if isinstance(of, TopicPattern)}

    def resolved(self, existing: Collection[str]) -> Topics:
        """These topics, with those of the ``existing`` ones that the patterns match.

        What the pipeline writes itself matches none.

        Raises:
            BusError: a pattern matches no topic, or two purposes share one.
        """
        own = {self.predictions, self.drift, self.dead_letters, self.rollouts, self.control}
        found = {
            role: tuple(sorted(each for each in existing if each not in own and of.matches(each)))
            for role, of in self.patterns.items()
        }
        for role, names in found.items():
            if not names:
                raise BusError(
                    f"no topic matches {role}={self._given[role]!r} of pipeline {self._pipeline!r}"
                )
        topics = self.named(self._pipeline, self._has_rollouts)
        topics._found = found
        if shared := set(topics.all_events) & set(topics.all_labels):
            raise BusError(
                f"topic {min(shared)} matches both events= and labels= of pipeline "
                f"{self._pipeline!r}: narrow a pattern"
            )
        return topics

    @property
    def predictions(self) -> str:
        return self._name("predictions")

    @property
    def drift(self) -> str:
        return self._name("drift")

    @property
    def dead_letters(self) -> str:
        return self._name("dead_letters")

    @property
    def control(self) -> str:
        return self._name("control")

    @property
    def rollouts(self) -> str:
        return self._name("rollouts")

    @property
    def outputs(self) -> tuple[str, ...]:
        """The topics that the pipeline writes."""
        always = (self.predictions, self.drift, self.dead_letters)
        return (*always, self.rollouts) if self._has_rollouts else always

    def is_label(self, topic: str) -> bool:
        """Whether labels are read there, or match their pattern."""
        labels = self._given.get("labels")
        if isinstance(labels, TopicPattern):
            return labels.matches(topic)
        return topic in self.all_labels

    def of_role(self, role: str) -> str:
        """The name of the topic for ``role``, one of `ROLES`.

        Raises:
            InputError: there are several.
        """
        if role in ("events", "labels"):
            names = self._inputs(role)
            if len(names) > 1 or role in self.patterns:
                listed = ", ".join(names)
                raise InputError(
                    f"pipeline {self._pipeline!r} has several topics of {role}, name one: {listed}"
                )
        return self._name(role)

    def _inputs(self, role: str) -> tuple[str, ...]:
        given = self._given.get(role)
        if isinstance(given, TopicPattern):
            return self._found.get(role) or (given.expression,)
        if given is None or isinstance(given, str):
            return (self._name(role),)
        return tuple(given)

    def _name(self, role: str) -> str:
        given = self._given.get(role)
        return given if isinstance(given, str) and given else f"{self._pipeline}.{_SUFFIXES[role]}"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Topics):
            return NotImplemented
        return (self._given, self._pipeline) == (other._given, other._pipeline)

    def __hash__(self) -> int:
        return hash((self._pipeline, *self._given))

    def __repr__(self) -> str:
        return f"Topics({', '.join(f'{role}={name!r}' for role, name in self._given.items())})"


def role_named(text: str) -> str | None:
    """The role that a user writes as ``dead-letters`` or ``dead_letters``; None if it is none.

    >>> role_named("dead-letters"), role_named("orders")
    ('dead_letters', None)
    """
    role = text.replace("-", "_")
    return role if role in ROLES else None


def named_topics(topics: object, pipeline: str) -> Topics:
    """What was given as the ``topics`` of a pipeline, named after it.

    Raises:
        DeclarationError: it is no `Topics`.
    """
    if not isinstance(topics, Topics):
        raise DeclarationError(
            f'topics= of pipeline {pipeline!r} is {topics!r}: give Topics(events="…", …)'
        )
    return topics.named(pipeline)


def check_topics(
    topics: Topics, pipeline: str, *, has_labels: bool, has_rollouts: bool, told_apart: bool = False
) -> None:
    """Check the topics of a pipeline: each is legal and of use, and none has two purposes.

    ``told_apart``: there are conditions by which events and labels on the same topics are.

    Raises:
        DeclarationError: names the topic and what is wrong with it.
    """
    where = f"topics= of pipeline {pipeline!r}"
    for role, given in topics.given.items():
        _check_given(role, given, where)
        if role == "labels" and not has_labels:
            raise DeclarationError(
                f"{where} names a topic for labels, and none of this pipeline arrive on a topic of "
                "their own: leave out labels="
            )
        if role in _OF_ROLLOUTS and not has_rollouts:
            raise DeclarationError(
                f"{where} names {role}={given!r}, and the pipeline has no rollouts: leave it out, "
                "or declare challengers= or rollout="
            )
    if topics.labels_bus_config is not None and topics.labels_bus is None:
        raise DeclarationError(f"{where} names labels_bus_config= without labels_bus=: give both")
    if topics.labels_bus is not None:
        if not isinstance(topics.labels_bus, str) or ":" not in topics.labels_bus:
            raise DeclarationError(
                f"labels_bus={topics.labels_bus!r} in {where} must be the URL of a bus: "
                "sqlite:PATH or kafka://HOST:PORT,…"
            )
        if not has_labels:
            raise DeclarationError(
                f"{where} names a bus for labels, and none of this pipeline arrive on a topic of "
                "their own: leave out labels_bus="
            )
    used = [
        (role, name)
        for role in ROLES
        if (role != "labels" or has_labels) and (role not in _OF_ROLLOUTS or has_rollouts)
        for name in _fixed_names(topics, role)
    ]
    roles: dict[str, str] = {}
    for role, name in used:
        other = roles.setdefault(name, role)
        shared = (other, role) == ("events", "labels")
        if shared and told_apart and topics.all_events == topics.all_labels:
            continue
        if other != role:
            _refuse_two_roles(pipeline, name, other, role)
    for role, matching in topics.patterns.items():
        for other, name in used:
            if matching.matches(name) and other in topics.given and other not in _INPUTS:
                raise DeclarationError(
                    f"pipeline {pipeline!r} would read what it writes: {other}={name!r} matches "
                    f"{role}={matching!r}; give {other}= another name in topics="
                )


def _fixed_names(topics: Topics, role: str) -> Sequence[str]:
    if role in topics.patterns:
        return ()
    by_role: Mapping[str, tuple[str, ...]] = {
        "events": topics.all_events,
        "labels": topics.all_labels,
    }
    return by_role.get(role) or (topics.of_role(role),)


def _refuse_two_roles(pipeline: str, name: str, other: str, role: str) -> None:
    apart = (other, role) == ("events", "labels")
    if other in _INPUTS and role not in _INPUTS:
        raise DeclarationError(
            f"pipeline {pipeline!r} would read what it writes: topic {name!r} is its {other}= and "
            f"its {role}=; give {role}= another name in topics="
        )
    raise DeclarationError(
        f"topic {name!r} is both {other}= and {role}= of pipeline {pipeline!r}: give each a topic "
        f"of its own in topics={', or tell them apart with where= and label_where=' * apart}"
    )


def _check_given(role: str, given: object, where: str) -> None:
    if role in ("events", "labels") and not isinstance(given, str):
        if isinstance(given, TopicPattern):
            return
        if not isinstance(given, list | tuple) or not given:
            raise DeclarationError(
                f"{role}={given!r} in {where} must be the name of a topic, several names, or a "
                "pattern(…)"
            )
        for name in given:
            _check_name(role, name, where)
        if len(set(given)) < len(given):
            raise DeclarationError(f"{role}={given!r} in {where} names a topic twice")
        return
    _check_name(role, given, where)


def _check_name(role: str, name: object, where: str) -> None:
    if not isinstance(name, str):
        raise DeclarationError(f"{role}={name!r} in {where} must be the name of a topic")
    try:
        check_topic(name)
    except BusError as error:
        raise DeclarationError(f"{role}= in {where}: {error}") from None
