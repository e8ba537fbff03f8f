"""What keeps the image from being built."""


class Failure(Exception):
    """Something somebody can put right.

    Attributes:
        remedy: What to do about it.
    """

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.remedy = remedy
