"""accel: messages between an application and its sidecar, without the TCP stack in between."""

__version__ = "0.1.0"
