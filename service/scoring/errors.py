"""Why a run of `logpx score` ends early; each is one sentence, and the exit code is 2.

ScoringError    the images, the folder of results or the machine do not allow it
"""


class ScoringError(Exception):
    """The images, the folder of results or the machine do not allow it."""
