"""The one error of the embedded cluster: what is wrong, and how to mend it."""


class ClusterError(Exception):
    """Something about the embedded cluster a person can act on: `what` (with where), and the `mend`."""

    def __init__(self, what: str, mend: str = "") -> None:
        super().__init__(f"{what}. {mend}" if mend else what)
        self.what = what
        self.mend = mend
