"""What can go wrong on the testbed.

AccelError
    TestbedError             a pod or one of its processes could not be made
    MissingProgram           a program the testbed runs is not on this machine
"""

from __future__ import annotations

from accel.errors import AccelError


class TestbedError(AccelError):
    """A pod, or a process in it, could not be made or did not stay."""

    __test__ = False  # the name begins like a test class


class MissingProgram(TestbedError):
    """A program the testbed runs is not on this machine.

    Attributes:
        program: Its name.
    """

    def __init__(self, program: str, *, remedy: str) -> None:
        super().__init__(f"{program} is not on this machine", remedy=remedy)
        self.program = program
