"""The topics of a pipeline: where its events and labels come from, and where its outputs go.

Each has the name that was given for it, or one that follows from the pipeline's name.
"""

from __future__ import annotations

from anabranch.dataflows.bus.topic_names import check_topic
from anabranch.state.errors import BusError, DeclarationError

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


class Topics:
    """The names of a pipeline's topics; one that is left out is ``PIPELINE.events`` and so on.

    Args:
        events: where events are read.
        labels: where labels are read, if they arrive on a topic of their own.
        predictions: where predictions, or rankings, are published.
        drift: where drift signals are published.
        dead_letters: where messages go that can't be used.
        control: where commands to rollouts are read.
        rollouts: where decisions about rollouts are published.

    >>> topics = Topics(events="prod.orders.v2").named("risk")
    >>> topics.events, topics.predictions, topics.dead_letters
    ('prod.orders.v2', 'risk.predictions', 'risk.dead-letters')
    """

    def __init__(
        self,
        *,
        events: str | None = None,
        labels: str | None = None,
        predictions: str | None = None,
        drift: str | None = None,
        dead_letters: str | None = None,
        control: str | None = None,
        rollouts: str | None = None,
    ) -> None:
        names = (events, labels, predictions, drift, dead_letters, control, rollouts)
        pairs = zip(ROLES, names, strict=True)
        self._given: dict[str, str] = {role: name for role, name in pairs if name is not None}
        self._pipeline = "PIPELINE"
        self._has_rollouts = False

    def named(self, pipeline: str, has_rollouts: bool = False) -> Topics:
        """The topics of the pipeline of this name; ``has_rollouts``: with those of rollouts."""
        topics = Topics()
        topics._given = self._given
        topics._pipeline, topics._has_rollouts = pipeline, has_rollouts
        return topics

    @property
    def given(self) -> dict[str, str]:
        """The names that were given, by role."""
        return dict(self._given)

    @property
    def events(self) -> str:
        return self._name("events")

    @property
    def labels(self) -> str:
        return self._name("labels")

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

    def of_role(self, role: str) -> str:
        """The name of the topic for ``role``, one of `ROLES`."""
        return self._name(role)

    def _name(self, role: str) -> str:
        return self._given.get(role) or f"{self._pipeline}.{_SUFFIXES[role]}"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Topics):
            return NotImplemented
        return (self._given, self._pipeline) == (other._given, other._pipeline)

    def __hash__(self) -> int:
        return hash((tuple(self._given.items()), self._pipeline))

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


def check_topics(topics: Topics, pipeline: str, *, has_labels: bool, has_rollouts: bool) -> None:
    """Check the topics of a pipeline: each is legal and of use, and none has two purposes.

    Raises:
        DeclarationError: names the topic and what is wrong with it.
    """
    where = f"topics= of pipeline {pipeline!r}"
    for role, name in topics.given.items():
        _check_name(role, name, where)
        if role == "labels" and not has_labels:
            raise DeclarationError(
                f"{where} names a topic for labels, and none of this pipeline arrive on a topic of "
                "their own: leave out labels="
            )
        if role in _OF_ROLLOUTS and not has_rollouts:
            raise DeclarationError(
                f"{where} names {role}={name!r}, and the pipeline has no rollouts: leave it out, "
                "or declare challengers= or rollout="
            )
    used = [
        role
        for role in ROLES
        if (role != "labels" or has_labels) and (role not in _OF_ROLLOUTS or has_rollouts)
    ]
    roles: dict[str, str] = {}
    for role in used:
        name = topics.of_role(role)
        other = roles.setdefault(name, role)
        if other == role:
            continue
        if other in _INPUTS and role not in _INPUTS:
            raise DeclarationError(
                f"pipeline {pipeline!r} would read what it writes: topic {name!r} is its {other}= "
                f"and its {role}=; give {role}= another name in topics="
            )
        raise DeclarationError(
            f"topic {name!r} is both {other}= and {role}= of pipeline {pipeline!r}: give each a "
            "topic of its own in topics="
        )


def _check_name(role: str, name: object, where: str) -> None:
    if not isinstance(name, str):
        raise DeclarationError(f"{role}={name!r} in {where} must be the name of a topic")
    try:
        check_topic(name)
    except BusError as error:
        raise DeclarationError(f"{role}= in {where}: {error}") from None
