"""What goes wrong on a wire.

AccelError
    WireError     bytes that are not what their protocol says
    RpcError      a call that ended without its reply
"""

from __future__ import annotations

from enum import IntEnum

from accel.errors import AccelError


class Code(IntEnum):
    """How a call ended; the numbers are gRPC's, which ttrpc shares."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16

    @classmethod
    def of(cls, number: int) -> Code:
        """The code of a number from a wire; UNKNOWN for one that has no name."""
        try:
            return cls(number)
        except ValueError:
            return cls.UNKNOWN


class WireError(AccelError):
    """Bytes are not what their protocol says.

    Attributes:
        message: What was being read, as in "PodSandbox".
        field: Its field, as in "labels"; the number of one we do not know, as in "19".
        offset: Of the byte at fault, from the start of what was to be decoded.
    """

    def __init__(self, problem: str, *, message: str, field: str, offset: int) -> None:
        where = f"{message}.{field}" if field else message
        super().__init__(f"{where}: {problem} at byte {offset}")
        self.message = message
        self.field = field
        self.offset = offset


class RpcError(AccelError):
    """A call ended without its reply.

    Attributes:
        method: As called, "/runtime.v1.RuntimeService/Version"; "" when there was no call yet.
        code: UNAVAILABLE whenever the connection is lost: a new one may do.
        detail: What the server, or the system, said.
    """

    def __init__(
        self, code: Code, detail: str, *, method: str = "", remedy: str | None = None
    ) -> None:
        name = method.rpartition("/")[2]
        super().__init__(
            f"{name}: {code.name}: {detail}" if name else detail,
            remedy=remedy if remedy is not None else _REMEDIES.get(code),
        )
        self.method = method
        self.code = code
        self.detail = detail


_REMEDIES = {
    Code.DEADLINE_EXCEEDED: "see whether the server hangs, or the node is short of CPU",
    Code.UNIMPLEMENTED: "the server is older than this call, or the socket is another service's",
    Code.UNAVAILABLE: "see whether the server is being restarted",
    Code.PERMISSION_DENIED: "see who may use this socket, and run as root",
}
