"""The Containerfile says to build/image what it says to other builders."""

from __future__ import annotations

import pytest

from accel import __version__
from build.oci.containerfile import NotOurs, read_settings
from tests.image.manifests import PROJECT

TEXT = (PROJECT / "Containerfile").read_text()


def test_ours_is_understood() -> None:
    settings = read_settings(TEXT, {"VERSION": __version__})
    assert settings["Entrypoint"] == ["/usr/local/bin/accel"]
    assert settings["Cmd"] == ["run"]
    assert settings["Env"] == ["PATH=/usr/local/bin:/usr/bin", "LANG=C.UTF-8"]
    assert settings["StopSignal"] == "SIGTERM"
    assert settings["Labels"]["org.opencontainers.image.version"] == __version__
    assert all(key.startswith("org.opencontainers.image.") for key in settings["Labels"])


def test_the_comments_version_is_this_one() -> None:
    assert f"--build-arg VERSION={__version__} --tag accel:{__version__}" in TEXT


@pytest.mark.parametrize(
    "line",
    [
        "FROM debian:12",
        "RUN true",
        "ADD more.tar /",
        "COPY rootfs /",
        "ARG OTHER",
        'LABEL version="${OTHER}"',
        "ENV A=1 B=2",
        "ENV A",
        "from scratch",
    ],
)
def test_what_would_make_another_image_is_refused(line: str) -> None:
    with pytest.raises(NotOurs):
        read_settings(f"{TEXT}\n{line}\n", {"VERSION": __version__})


def test_lines_may_go_on() -> None:
    assert read_settings('ENV \\\n  A="1 2"\n', {})["Env"] == ["A=1 2"]
