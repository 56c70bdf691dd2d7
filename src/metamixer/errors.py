"""The one exception that the command line turns into a sentence."""


class MetamixerError(Exception):
    """Something a user can mend, such as a missing file or an unfit checkpoint. The message is one sentence."""
