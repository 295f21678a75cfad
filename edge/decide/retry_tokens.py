"""Tokens for retries, so that many questions together do not hammer a server that is down."""


class RetryTokens:
    """gRPC's retry throttling (proposal A6), for retries that gRPC itself does not make.

    Args:
        most: tokens at the start, and the most there can be, >= 1.
        ratio: what an answer gives back of a token.
    """

    def __init__(self, most: int, ratio: float) -> None:
        self._most = most
        self._ratio = ratio
        self.left = float(most)
        """Tokens that are there now."""

    def failed(self) -> bool:
        """Takes a failed try in; returns whether it may be made again."""
        self.left = max(self.left - 1.0, 0.0)
        return self.left > self._most / 2

    def answered(self) -> None:
        """Takes an answer in."""
        self.left = min(self.left + self._ratio, float(self._most))
