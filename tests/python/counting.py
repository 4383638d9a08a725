"""How much random tests have tried, said at the end of a run, for the summary of all tests."""

import collections

COUNTS = collections.Counter()


def covered(n, what):
    """Count something that was tried; what is said of it later is ``covered: N WHAT``."""
    COUNTS[what] += n
