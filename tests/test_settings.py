"""Settings: what wins, and how each mistake is told."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from accel.core.advice import Override
from accel.core.meshes import Profile
from accel.errors import SettingsError
from accel.settings import (
    LogFormat,
    LogLevel,
    Settings,
    SourceName,
    explain_settings,
    load_settings,
)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "accel.yaml"


def test_nothing_given_means_the_defaults() -> None:
    found = explain_settings({}, {}, None)

    assert found.settings == Settings()
    assert set(found.origins.values()) == {"default"}
    assert not found.settings.trust_apps
    assert found.settings.bpffs == Path("/sys/fs/bpf/accel")


def test_flags_win_over_environment_over_file_over_defaults(config: Path) -> None:
    config.write_text("trust_apps: false\nmax_connections: 100\nlog_level: debug\n")
    environ = {"ACCEL_MAX_CONNECTIONS": "200", "ACCEL_LOG_LEVEL": "error", "PATH": "/bin"}
    flags = {"log_level": "warning", "relist_seconds": None}

    found = explain_settings(flags, environ, config)

    assert found.settings == Settings(max_connections=200, log_level=LogLevel.WARNING)
    assert {key: found.origins[key] for key in ("trust_apps", "max_connections", "log_level")} == {
        "trust_apps": str(config),
        "max_connections": "ACCEL_MAX_CONNECTIONS",
        "log_level": "--log-level",
    }
    assert found.origins["relist_seconds"] == "default"


def test_a_full_file(config: Path) -> None:
    config.write_text(
        """
        source: containerd, processes
        cgroup: /sys/fs/cgroup/test
        bpffs: /sys/fs/bpf/test
        run_dir: /run/test
        kubernetes: true
        trust_apps: true
        force_trust: true
        accelerate: false
        namespaces:
          shop: {accelerate: true, trust_apps: true}
        pods:
          web: {trust_apps: false}
          "netns:4026532511": {accelerate: false}
        profiles:
          - {name: ours, exes: [proxy, proxy-debug], uids: [4444]}
          - {name: theirs, exes: [mesh]}
          - {name: hers, containers: [proxy-*], marks: [hers.dev/injected=yes], stops_short: false}
        max_connections: 1024
        relist_seconds: 5
        log_level: error
        log_format: json
        """
    )

    assert load_settings({}, {}, config) == Settings(
        source=(SourceName.CONTAINERD, SourceName.PROCESSES),
        kubernetes=True,
        cgroup=Path("/sys/fs/cgroup/test"),
        bpffs=Path("/sys/fs/bpf/test"),
        run_dir=Path("/run/test"),
        trust_apps=True,
        force_trust=True,
        accelerate=False,
        namespaces={"shop": Override(trust_apps=True, accelerate=True)},
        pods={"web": Override(trust_apps=False), "netns:4026532511": Override(accelerate=False)},
        profiles=(
            Profile("ours", frozenset({"proxy", "proxy-debug"}), frozenset({4444})),
            Profile("theirs", frozenset({"mesh"})),
            Profile(
                "hers",
                stops_short=False,
                containers=frozenset({"proxy-*"}),
                marks=frozenset({"hers.dev/injected=yes"}),
            ),
        ),
        max_connections=1024,
        relist_seconds=5.0,
        log_level=LogLevel.ERROR,
        log_format=LogFormat.JSON,
    )


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n"])
def test_an_empty_file_changes_nothing(config: Path, text: str) -> None:
    config.write_text(text)

    assert load_settings({}, {}, config) == Settings()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("trst_apps: true", "unknown key 'trst_apps'; did you mean 'trust_apps'?"),
        ("zzz: 1", "unknown key 'zzz'"),
        ("1: 2", "unknown key 1"),
        ("pods: {web: {trust_app: true}}", "pods.web: unknown key 'trust_app'; did you mean"),
        ("profiles: [{name: a, exe: [b]}]", "profiles[0]: unknown key 'exe'; did you mean 'exes'?"),
        ("trust_apps: 1", "trust_apps: expected bool, got int"),
        ("trust_apps: 'true'", "trust_apps: expected bool, got str"),
        ("trust_apps:", "trust_apps: expected bool, got null"),
        ("pods: 3", "pods: expected object, got int"),
        ("pods: {web: 3}", "pods.web: expected object, got int"),
        ("pods: {web: {trust_apps: 3}}", "pods.web: trust_apps: expected bool"),
        ("pods: {7: {}}", "pods.7: expected str, got int"),
        ("profiles: [{name: a}]", "profiles: [0]: a profile needs exes, as in [envoy], or"),
        ("profiles: [{name: a, exes: [b], marks: [c]}]", "marks count only beside containers"),
        ("profiles: [{name: a, containers: [B]}]", "profiles: [0]: containers must list names"),
        ("namespaces: {shop: {trust: true}}", "namespaces.shop: unknown key 'trust'"),
        ("namespaces: {shop: {accelerate: 1}}", "namespaces.shop: accelerate: expected bool"),
        ("profiles: [{name: a, exes: [b/c]}]", "profiles: [0]: exes must list base names"),
        ("profiles: [{name: a, exes: [b], uids: [-1]}]", "profiles: [0]: uids must be"),
        ("cgroup: relative", "cgroup: expected an absolute path, found 'relative'"),
        ("run_dir: 3", "run_dir: expected a path, found 3"),
        ("max_connections: 1", "max_connections: expected int >= 16"),
        ("max_connections: 1.5", "max_connections: expected int, got float"),
        ("relist_seconds: 0", "relist_seconds: expected float >= 1"),
        ("relist_seconds: .nan", "relist_seconds: expected float >= 1"),
        ("source: docker", "source: invalid enum value 'docker'"),
        ("source: cri, docker", "source: invalid enum value 'docker'"),
        ("source: [cri, cri]", "source: expected each source once"),
        ("source: []", "source: expected each source once"),
        ("source: auto, cri", "source: expected auto alone"),
        ("source: 3", "source: expected names of sources, got 3"),
        ("log_format: xml", "log_format: invalid enum value 'xml'"),
        ("- a", "expected keys and values, found a list"),
        ("just words", "expected keys and values, found text"),
        ("trust_apps: [", "line 1:"),
        ("trust_apps: true\ntrust_apps: false", "line 2: key 'trust_apps' is given twice"),
        ("pods: {a: {}, a: {}}", "line 1: key 'a' is given twice"),
        ("? [a]\n: b", "line 1: a key must be a plain word"),
        ("x: !!python/object:os.system {}", "could not determine a constructor"),
        ("\0", "not YAML"),
    ],
)
def test_mistakes_in_the_file_are_told_by_name_and_place(
    config: Path, text: str, words: str
) -> None:
    config.write_text(text)

    with pytest.raises(SettingsError) as caught:
        load_settings({}, {}, config)

    assert str(caught.value).startswith(f"config {config}: ")
    assert words in str(caught.value)
    assert caught.value.remedy is not None


def test_the_choices_are_told(config: Path) -> None:
    for text, remedy in (
        ("log_format: xml", "use one of: text, json"),
        ("source: docker", "use one of: auto, nri, containerd, cri, processes"),
    ):
        config.write_text(text)
        with pytest.raises(SettingsError) as caught:
            load_settings({}, {}, config)
        assert caught.value.remedy == remedy


@pytest.mark.parametrize("text", ["cri,nri", " cri , nri ", "[cri, nri]"])
def test_several_sources_in_the_order_of_their_rank(config: Path, text: str) -> None:
    config.write_text(f"source: {text}")

    assert load_settings({}, {}, config).source == (SourceName.CRI, SourceName.NRI)
    assert load_settings({"source": "auto"}, {"ACCEL_SOURCE": "nri"}, config).source == (
        SourceName.AUTO,
    )


def test_a_file_that_cannot_be_read(config: Path) -> None:
    with pytest.raises(SettingsError, match="No such file"):
        load_settings({}, {}, config)
    config.write_bytes(b"trust_apps: \xff")
    with pytest.raises(SettingsError, match="not YAML"):
        load_settings({}, {}, config)
    with pytest.raises(SettingsError, match="Is a directory"):
        load_settings({}, {}, config.parent)


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"ACCEL_TRUST_APPS": "perhaps"}, "ACCEL_TRUST_APPS: expected bool, got str"),
        ({"ACCEL_TRST_APPS": "1"}, "did you mean ACCEL_TRUST_APPS?"),
        ({"ACCEL_MAX_CONNECTIONS": "many"}, "ACCEL_MAX_CONNECTIONS: expected int, got str"),
        ({"ACCEL_CGROUP": "relative"}, "ACCEL_CGROUP: expected an absolute path"),
        ({"ACCEL_SOURCE": "docker"}, "ACCEL_SOURCE: invalid enum value 'docker'"),
        ({"ACCEL_NAMESPACES": "{}"}, "namespaces can be given in the config file only"),
        ({"ACCEL_PODS": "{}"}, "pods can be given in the config file only"),
    ],
)
def test_mistakes_in_the_environment(environ: dict[str, str], words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings({}, environ, None)
    assert words in str(caught.value)


def test_what_kubernetes_sets_for_a_service_called_accel_is_no_mistake() -> None:
    environ = {
        "ACCEL_SERVICE_HOST": "10.96.0.7",
        "ACCEL_SERVICE_PORT": "80",
        "ACCEL_PORT": "tcp://10.96.0.7:80",
        "ACCEL_PORT_80_TCP_ADDR": "10.96.0.7",
    }

    assert load_settings({}, environ, None) == Settings()


@pytest.mark.parametrize("value", ["true", "1", "True"])
def test_words_for_yes_in_the_environment(value: str) -> None:
    assert load_settings({}, {"ACCEL_TRUST_APPS": value}, None).trust_apps


def test_flags_may_be_text_or_values() -> None:
    flags = {"cgroup": Path("/a"), "bpffs": "/b", "max_connections": "77", "trust_apps": True}

    assert load_settings(flags, {}, None) == Settings(
        cgroup=Path("/a"), bpffs=Path("/b"), max_connections=77, trust_apps=True
    )


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"trst_apps": True}, "flags: unknown key 'trst_apps'"),
        ({"max_connections": "x"}, "--max-connections: expected int"),
        ({"run_dir": "x"}, "--run-dir: expected an absolute path"),
    ],
)
def test_mistakes_in_flags(flags: dict[str, object], words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(flags, {}, None)
    assert words in str(caught.value)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text() | st.sampled_from(Settings.__struct_fields__).map(lambda key: f"{key}: ~x"))
def test_whatever_the_file_says_it_is_settings_or_a_settings_error(config: Path, text: str) -> None:
    config.write_text(text, encoding="utf-8", errors="surrogateescape")

    try:
        assert isinstance(load_settings({}, {}, config), Settings)
    except SettingsError as error:
        assert error.remedy  # noqa: PT017  # either outcome is right
