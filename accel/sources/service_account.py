"""What Kubernetes mounts into a pod so that it can speak to the cluster."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from accel.errors import AccelError


class NoServiceAccount(AccelError):
    """There is no token to authenticate with."""


@dataclass(frozen=True, slots=True)
class ServiceAccount:
    """The mounted service account; its files are read each time, as they are replaced."""

    directory: Path = Path("/var/run/secrets/kubernetes.io/serviceaccount")

    @property
    def token_file(self) -> Path:
        return self.directory / "token"

    @property
    def ca_file(self) -> Path:
        return self.directory / "ca.crt"

    def token(self) -> str:
        """The token of this hour.

        Raises:
            NoServiceAccount: It cannot be read, or is empty.
        """
        try:
            token = self.token_file.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise NoServiceAccount(
                f"read the service account's token: {error}",
                remedy="run accel in a pod whose serviceAccountName is set and mounted",
            ) from error
        if not token:
            raise NoServiceAccount(f"{self.token_file} is empty")
        return token
