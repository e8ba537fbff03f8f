"""The Containerfile, as far as ours goes: what is to be run, and how, in an image.

It is the one place that says so, for build/image and for every other builder.  Read are
the instructions that set something in the image's config, in their unambiguous form:
lists as JSON, values in double quotes or without blanks, one of a kind in a line.
"""

import json
import re
import shlex
from collections.abc import Mapping
from typing import Any

_JOINED = re.compile(r"\\\n")
_INSTRUCTION = re.compile(r"^([A-Z]+)\s+(.+)$")
_ARGUMENT = re.compile(r"\$\{(\w+)\}")

LAYER = "rootfs.tar"
"""The archive that our Containerfile adds: all of the image's files."""


class NotOurs(Exception):
    """The file says what build/image could not do as well."""


def read_settings(text: str, arguments: Mapping[str, str]) -> dict[str, Any]:
    """The "config" of an image's config (config.md of the OCI image specification).

    Args:
        text: The whole Containerfile.
        arguments: Values for its ARGs, by name.

    Raises:
        NotOurs: An instruction or a form that is not known here.
    """
    settings: dict[str, Any] = {"Env": [], "Labels": {}}
    for line in _lines(text):
        found = _INSTRUCTION.match(line)
        if not found:
            raise NotOurs(f"not an instruction: {line}")
        word, value = found[1], _ARGUMENT.sub(lambda m: _argument(m[1], arguments), found[2])
        match word:
            case "FROM" if value == "scratch":
                pass
            case "ADD" if value == f"{LAYER} /":
                pass
            case "ARG":
                _argument(value, arguments)
            case "ENV":
                settings["Env"].append("=".join(_pair(value)))
            case "LABEL":
                settings["Labels"].update([_pair(value)])
            case "ENTRYPOINT" | "CMD":
                settings[word.capitalize()] = json.loads(value)
            case "STOPSIGNAL":
                settings["StopSignal"] = value
            case _:
                raise NotOurs(f"no such instruction is known: {line}")
    return settings


def _lines(text: str) -> list[str]:
    lines = (line.strip() for line in _JOINED.sub(" ", text).splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _argument(name: str, arguments: Mapping[str, str]) -> str:
    if name not in arguments:
        raise NotOurs(f"nothing is known of the argument {name}")
    return arguments[name]


def _pair(value: str) -> tuple[str, str]:
    words = shlex.split(value)
    if len(words) != 1 or "=" not in words[0]:
        raise NotOurs(f"expected one NAME=VALUE, found: {value}")
    name, _, said = words[0].partition("=")
    return name, said
