"""The root of every deliberate error, and the ones that belong to no single part.

AccelError
    SettingsError            a flag, variable or file says something we cannot take
    LinuxError               this system lacks, or refuses, what we asked of it
"""


class AccelError(Exception):
    """Something went wrong that we foresaw.

    Attributes:
        remedy: What the reader can do about it, or None when nothing is known
            to help.
    """

    def __init__(self, message: str, *, remedy: str | None = None) -> None:
        super().__init__(message)
        self.remedy = remedy
        if remedy is not None:
            self.add_note(f"remedy: {remedy}")


class SettingsError(AccelError):
    """A setting is unknown, malformed or out of range; the message says where it was given."""


class LinuxError(AccelError):
    """This system lacks something outside bpf(2), or refused it."""
