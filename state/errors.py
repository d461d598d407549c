"""The one exception root.

A message has three parts: what is wrong, where, and what to do. The command line prints the message
alone; a traceback is for bugs of this program, never for a user's mistake.
"""


class AnabranchError(Exception):
    """An error that a user can fix: the message says what, where and how."""


class DeclarationError(AnabranchError):
    """A pipeline, feature or model was declared in a way that cannot work."""


class BusError(AnabranchError):
    """A bus can't be reached, a topic is missing, or a message could not be delivered."""


class InputError(AnabranchError):
    """A file, data set or option given by the user can't be used."""


class StateError(AnabranchError):
    """A state directory can't be used: damaged, another pipeline's, in use, or out of space."""


class UnreadableError(StateError):
    """A state can't be read or written now, which says nothing of it: a lock, a full disk."""
