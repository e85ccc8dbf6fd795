"""Names that fields of the configuration once had, and still answer to: a run's old file has to load."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, TypeVar

from layerlens.errors import TrainingError

OLD_NAMES = {"internal_steps": "internal_rollouts", "monitor_steps": "monitor_every"}
"""Old name -> the field's name."""

Class = TypeVar("Class", bound=type)


def with_new_names(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings under their present names. Raises TrainingError if an old and a new name of one field differ in value."""
    renamed = {name: value for name, value in settings.items() if name not in OLD_NAMES}
    for old in settings.keys() & OLD_NAMES.keys():
        new, value = OLD_NAMES[old], settings[old]
        if new in renamed and renamed[new] != value:
            raise TrainingError(f"{old}={value} and {new}={renamed[new]} are one setting under its old and its new name: give {new} alone")
        renamed[new] = value
    return renamed


def takes_old_names(cls: Class) -> Class:
    """Class decorator: the constructor takes the old names too, and each is an attribute that reads and sets the field."""
    build: Callable[..., None] = cls.__init__  # type: ignore[misc]

    @wraps(build)
    def init(self: Any, *args: Any, **settings: Any) -> None:
        build(self, *args, **with_new_names(settings))

    cls.__init__ = init  # type: ignore[misc]
    for old, new in OLD_NAMES.items():
        setattr(cls, old, _alias(new))
    return cls


def _alias(name: str) -> property:
    return property(lambda self: getattr(self, name), lambda self, value: setattr(self, name, value))
