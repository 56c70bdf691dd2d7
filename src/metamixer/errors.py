"""The one exception that the command line turns into a sentence."""


class MetamixerError(Exception):
    """Something a user can mend: a missing file, an unfit checkpoint, an unreadable picture. The message is one sentence."""
