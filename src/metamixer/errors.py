"""The one exception that the command line turns into a sentence, and its kind for settings."""

from __future__ import annotations


class MetamixerError(Exception):
    """Something a user can mend, such as a missing file or an unfit checkpoint. The message is one sentence."""


class SettingError(MetamixerError, ValueError):
    """A setting out of its range; a ValueError too, so that the command line takes it for wrong usage.

    Attributes:
        name: the parameter or field, where it is one.
    """

    def __init__(self, sentence: str, name: str | None = None) -> None:
        super().__init__(sentence)
        self.name = name
