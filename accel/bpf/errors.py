"""What can go wrong between an object file, this process and bpf(2).

AccelError
    ObjectError              the ELF object is not what we expect
    ShapeError               a map, key or value is not of the size or kind expected
    BpfError                 a bpf(2) command failed
        NotSupported         this kernel lacks a feature
        VerifierRejected     the verifier refused a program
"""

from __future__ import annotations

import errno as errno_names
import os

from accel.errors import AccelError


class ObjectError(AccelError):
    """The object file is malformed, or asks for something we do not do.

    Attributes:
        place: Where in the file, e.g. "section .maps, offset 16", or None.
        source: What was read, a file's path for one, or None.
        reason: The message without either.
    """

    def __init__(
        self,
        message: str,
        *,
        place: str | None = None,
        remedy: str | None = None,
        source: str | None = None,
    ) -> None:
        super().__init__(": ".join(filter(None, (source, place, message))), remedy=remedy)
        self.reason = message
        self.place = place
        self.source = source

    def within(self, place: str) -> ObjectError:
        """The same error, told from further out: its own place is part of `place`."""
        whole = place if self.place is None else f"{place}, {self.place}"
        return ObjectError(self.reason, place=whole, remedy=self.remedy, source=self.source)

    def of(self, source: str) -> ObjectError:
        """The same error, which says what was read."""
        return ObjectError(self.reason, place=self.place, remedy=self.remedy, source=source)


class ShapeError(AccelError):
    """A map, a pin, a key or a value is not what the caller said it would be.

    Attributes:
        differences: Every one of them, as in "key_size is 8, expected 4".
    """

    def __init__(
        self, what: str, differences: tuple[str, ...], *, remedy: str | None = None
    ) -> None:
        super().__init__(f"{what}: {'; '.join(differences)}", remedy=remedy)
        self.differences = differences


class BpfError(AccelError):
    """A bpf(2) command failed.

    Attributes:
        action: What was tried, as in "create map sockets".
        errno: The kernel's answer, or 0 where the kernel was not asked.
    """

    def __init__(self, action: str, errno: int, *, remedy: str | None = None) -> None:
        name = errno_names.errorcode.get(errno, str(errno))
        super().__init__(f"{action}: {os.strerror(errno)} ({name})", remedy=remedy)
        self.action = action
        self.errno = errno


class NotSupported(BpfError):
    """The running kernel lacks a feature.

    Attributes:
        feature: What is missing.
        since: The first kernel with it; for messages and tests, never for decisions.
    """

    def __init__(
        self, feature: str, since: tuple[int, int], *, errno: int = errno_names.EOPNOTSUPP
    ) -> None:
        super().__init__(
            feature, errno, remedy=f"run Linux {since[0]}.{since[1]} or later to have it"
        )
        self.feature = feature
        self.since = since


class VerifierRejected(BpfError):
    """The verifier refused a program.

    Attributes:
        program: Name of the program.
        line: The line of the log that matters.
        source: "file.c:12: source text" of the instruction it speaks of, or None.
        log: Everything the verifier said.
    """

    def __init__(
        self,
        program: str,
        errno: int,
        *,
        line: str,
        source: str | None,
        log: str,
        remedy: str | None = None,
    ) -> None:
        where = f", at {source}" if source else ""
        super().__init__(f"load program {program}: {line}{where}", errno, remedy=remedy)
        self.program = program
        self.line = line
        self.source = source
        self.log = log
