"""Errors that an operator has to fix: in the document, the store and the pepper."""

from __future__ import annotations


class ConfigurationError(Exception):
    """The base of all configuration errors; ``problems`` has one line for each mistake."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class DocumentError(ConfigurationError):
    """A document cannot be used; each problem begins with the path of the field."""


class StateError(ConfigurationError):
    """The store refuses a change or cannot be opened for writing; nothing was changed."""


class StateUnavailable(StateError):
    """The store or the audit trail cannot be read or written, or no document was applied yet."""


class PepperError(ConfigurationError):
    """There is no pepper, or none that may be trusted."""
