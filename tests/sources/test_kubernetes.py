"""Advice from an API server, whatever happens to that server."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from pathlib import Path

import anyio
import pytest

from accel.core.advice import NO_ADVICE, Advice
from accel.core.events import (
    AdviceEvent,
    AdviceGone,
    AdviceListed,
    AdviceSeen,
    NamespaceName,
    PodUid,
    Subject,
)
from accel.errors import SettingsError
from accel.sources import apiserver
from accel.sources.apiserver import (
    Access,
    ApiServer,
    ApiServerError,
    InCluster,
    KubeConfig,
    load_client,
)
from accel.sources.kubernetes import KubernetesAdvice, find_node_name
from tests.sources.clusters import (
    NODE,
    Account,
    Pauses,
    listening,
    namespace_object,
    pod_object,
)
from tests.sources.conftest import Certificate

pytest.importorskip("kubernetes_asyncio")

from tests.sources.fake_apiserver import NAMESPACES, PODS, End, FakeApiServer, line

pytestmark = pytest.mark.anyio

WEB = PodUid("uid-of-web")
OFF, ON = Advice(accelerate=False), Advice(accelerate=True)
SAYS_OFF = {"accel.dev/accelerate": "false"}
SAYS_ON = {"accel.dev/accelerate": "true"}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def server(certificate: Certificate) -> AsyncIterator[FakeApiServer]:
    async with FakeApiServer.serve(certificate.file, certificate.key) as server:
        server.put(NAMESPACES, namespace_object("shop"))
        server.put(PODS, pod_object("web"))
        yield server


@pytest.fixture
def access(server: FakeApiServer, account: Account) -> Access:
    return InCluster(account.mounted, server.environ)


@pytest.fixture
def source(access: Access, pauses: Pauses) -> KubernetesAdvice:
    return KubernetesAdvice(NODE, access, timing=pauses.timing)


async def test_lists_once_and_then_tells_changes(
    server: FakeApiServer, source: KubernetesAdvice
) -> None:
    server.put(NAMESPACES, namespace_object("bank", {"accel.dev/trust-apps": "true"}))
    server.put(PODS, pod_object("elsewhere", node="node-b"))
    async with listening(source) as told:
        assert await told.next() == AdviceListed(
            {
                WEB: NO_ADVICE,
                NamespaceName("shop"): NO_ADVICE,
                NamespaceName("bank"): Advice(trust_apps=True),
            }
        )
        await server.watched(PODS)
        await server.watched(NAMESPACES)

        server.put(PODS, pod_object("web", SAYS_OFF))
        assert await told.next() == AdviceSeen(WEB, OFF)
        server.put(PODS, pod_object("web"))  # the annotation was taken away
        assert await told.next() == AdviceSeen(WEB, NO_ADVICE)
        server.put(PODS, pod_object("new"))
        assert await told.next() == AdviceSeen(PodUid("uid-of-new"), NO_ADVICE)
        server.put(NAMESPACES, namespace_object("shop", SAYS_ON))
        assert await told.next() == AdviceSeen(NamespaceName("shop"), ON)


async def test_what_has_left_is_told_late(
    server: FakeApiServer, access: Access, pauses: Pauses
) -> None:
    """Its containers may be there for a while, and need the advice."""
    source = KubernetesAdvice(NODE, access, linger_seconds=0.05, timing=pauses.timing)
    async with listening(source) as told:
        await told.next()
        await server.watched(PODS)
        await server.watched(NAMESPACES)
        server.delete(PODS, "web")
        server.put(PODS, pod_object("next"))
        assert await told.next() == AdviceSeen(PodUid("uid-of-next"), NO_ADVICE)
        assert await told.next() == AdviceGone(WEB)
        server.delete(NAMESPACES, "shop")
        assert await told.next() == AdviceGone(NamespaceName("shop"))


async def test_asks_as_client_go_does_but_for_metadata_alone(
    server: FakeApiServer, source: KubernetesAdvice
) -> None:
    async with listening(source) as told:
        await told.next()
        await server.watched(PODS)

    (listing,) = server.asked(PODS, watch=False)
    (watch,) = server.asked(PODS, watch=True)
    assert listing.query == {"fieldSelector": f"spec.nodeName={NODE}", "resourceVersion": "0"}
    assert "as=PartialObjectMetadataList;g=meta.k8s.io;v=v1" in listing.accept
    assert "as=PartialObjectMetadata;g=meta.k8s.io;v=v1" in watch.accept
    assert listing.user_agent.startswith("accel/")
    assert 300 <= int(watch.query["timeoutSeconds"]) <= 600
    assert {**watch.query, "timeoutSeconds": ""} == {
        "fieldSelector": f"spec.nodeName={NODE}",
        "watch": "1",
        "allowWatchBookmarks": "true",
        "resourceVersion": str(server.version),
        "timeoutSeconds": "",
    }


async def test_what_does_not_concern_us_is_not_told(
    server: FakeApiServer, source: KubernetesAdvice
) -> None:
    async with listening(source) as told:
        await told.next()
        await server.watched(PODS)
        server.put(PODS, pod_object("web", {"checked-at": "12:00"}))
        server.put(PODS, pod_object("elsewhere", SAYS_OFF, node="node-b"))
        server.put(PODS, pod_object("web", SAYS_OFF))
        assert await told.next() == AdviceSeen(WEB, OFF)


async def test_a_server_that_sends_whole_objects(
    server: FakeApiServer, source: KubernetesAdvice
) -> None:
    server.whole_objects = True
    async with listening(source) as told:
        assert WEB in listed(await told.next())
        await server.watched(PODS)
        server.put(PODS, pod_object("web", SAYS_OFF))
        assert await told.next() == AdviceSeen(WEB, OFF)


async def test_a_watch_that_ends_goes_on_where_it_was(
    server: FakeApiServer, source: KubernetesAdvice, pauses: Pauses
) -> None:
    """As each does after some minutes; nothing is listed again, nobody waits."""
    async with listening(source) as told:
        await told.next()
        await server.watched(PODS)
        server.put(NAMESPACES, namespace_object("other"))
        await told.next()
        server.bookmark(PODS)
        bookmarked = server.version
        server.end_watches(PODS, End.CLEAN)
        server.put(PODS, pod_object("web", SAYS_OFF))

        assert await told.next() == AdviceSeen(WEB, OFF)
        await server.watched(PODS, 2)

    assert server.asked(PODS, watch=True)[1].query["resourceVersion"] == str(bookmarked)
    assert len(server.asked(PODS, watch=False)) == 1
    assert len(pauses.seconds) == 1  # at the start


async def test_a_watch_that_brings_nothing_is_not_begun_again_at_once(
    server: FakeApiServer, source: KubernetesAdvice, pauses: Pauses
) -> None:
    async with listening(source) as told:
        await told.next()
        for times in (1, 2, 3):
            await server.watched(PODS, times)
            server.end_watches(PODS, End.CLEAN)
        await server.watched(PODS, 4)

    assert len(pauses.seconds) == 4
    assert len(server.asked(PODS, watch=False)) == 1


@pytest.mark.parametrize("how", End)
async def test_a_watch_that_ends_in_the_middle_of_an_event(
    server: FakeApiServer, source: KubernetesAdvice, how: End
) -> None:
    async with listening(source) as told:
        await told.next()
        await server.watched(PODS)
        before = server.version
        event = line("MODIFIED", pod_object("web", SAYS_ON))
        server.say(PODS, event[: len(event) // 2])
        server.end_watches(PODS, how)
        server.put(PODS, pod_object("web", SAYS_OFF))

        assert await told.next() == AdviceSeen(WEB, OFF)
        await server.watched(PODS, 2)

    assert server.asked(PODS, watch=True)[1].query["resourceVersion"] == str(before)


@pytest.mark.parametrize("by_http", [True, False])
async def test_what_was_missed_is_listed_again(
    server: FakeApiServer, access: Access, pauses: Pauses, by_http: bool
) -> None:
    """410 Gone: the server no longer knows what happened since, and pods may have gone."""
    server.gone_by_http = by_http
    source = KubernetesAdvice(NODE, access, linger_seconds=0.05, timing=pauses.timing)
    server.put(PODS, pod_object("other"))
    async with listening(source) as told:
        await told.next()
        await server.watched(PODS)
        await server.watched(NAMESPACES)
        server.end_watches(PODS, End.ABORT)
        del server.objects[PODS]["web"]
        server.put(PODS, pod_object("other", SAYS_OFF))
        server.forget_history()

        assert listed(await told.next())[PodUid("uid-of-other")] == OFF
        assert await told.next() == AdviceGone(WEB)
        await server.watched(PODS, 2)
        server.put(PODS, pod_object("other"))
        assert await told.next() == AdviceSeen(PodUid("uid-of-other"), NO_ADVICE)


async def test_any_other_error_of_a_watch_lists_again_too(
    server: FakeApiServer, source: KubernetesAdvice, caplog: pytest.LogCaptureFixture
) -> None:
    async with listening(source) as told:
        await told.next()
        await server.watched(PODS)
        server.say(PODS, line("ERROR", {"code": 500, "reason": "Internal", "message": "etcd"}))
        assert WEB in listed(await told.next())

    assert "annotations of pods: the watch failed: 500 Internal: etcd" in caplog.text


@pytest.mark.parametrize(
    ("garbage", "said"),
    [
        (b"\x00\xff\xfe!\n", "not a watch event"),
        (b'{"type":"ADDED","object":{"metadata":[]}}\n', "Expected `object`, got `array`"),
        (line("ADDED", {"metadata": {"name": "x", "resourceVersion": "1"}}), "without a uid"),
        (b"x" * (9 << 20), "a line of more than"),
    ],
)
async def test_garbage_is_said_and_all_is_listed_again(
    server: FakeApiServer,
    source: KubernetesAdvice,
    caplog: pytest.LogCaptureFixture,
    garbage: bytes,
    said: str,
) -> None:
    async with listening(source) as told:
        await told.next()
        await server.watched(PODS)
        server.say(PODS, garbage)
        assert WEB in listed(await told.next())
        await server.watched(PODS, 2)
        server.put(PODS, pod_object("web", SAYS_OFF))
        assert await told.next() == AdviceSeen(WEB, OFF)

    assert said in caplog.text


async def test_byte_by_byte(server: FakeApiServer, source: KubernetesAdvice) -> None:
    server.chunk_bytes = 1
    async with listening(source) as told:
        await told.next()
        await server.watched(PODS)
        server.put(PODS, pod_object("web", SAYS_OFF))
        assert await told.next() == AdviceSeen(WEB, OFF)


async def test_a_huge_annotation_is_read_over(
    server: FakeApiServer, source: KubernetesAdvice
) -> None:
    """Up to 1.5 MiB an object; more than the client reads ahead, in one line."""
    huge = {"kubectl.kubernetes.io/last-applied-configuration": "é" * 1_400_000}
    async with listening(source) as told:
        await told.next()
        await server.watched(PODS)
        server.put(PODS, pod_object("web", {**huge, **SAYS_OFF}))
        assert await told.next() == AdviceSeen(WEB, OFF)
        await server.watched(NAMESPACES)
        server.end_watches(PODS, End.CLEAN)
        server.version += 1
        server.forget_history()
        assert listed(await told.next())[WEB] == OFF


async def test_a_slow_server_is_waited_for(server: FakeApiServer, source: KubernetesAdvice) -> None:
    server.may_list = anyio.Event()
    async with listening(source) as told:
        await server.until_asked("GET", PODS)
        await server.until_asked("GET", NAMESPACES)
        assert told.nothing()
        server.may_list.set()
        assert WEB in listed(await told.next())


async def test_a_server_that_does_not_answer_is_given_up(
    server: FakeApiServer, access: Access, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.may_list = anyio.Event()
    monkeypatch.setattr(apiserver, "_ANSWER_SECONDS", 0.05)
    await load_client()
    async with ApiServer.connect(access) as client:
        with pytest.raises(ApiServerError, match=r"GET /api/v1/pods: .*no answer in 0.05 s"):
            await client.get(PODS, {}, "application/json")


async def test_the_token_is_read_again(
    server: FakeApiServer,
    source: KubernetesAdvice,
    account: Account,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with listening(source) as told:
        await told.next()
        await server.watched(PODS)
        await server.watched(NAMESPACES)
        server.token = "second"
        server.end_watches(PODS, End.ABORT)
        await server.until_asked("GET", PODS, 5)  # in vain, until the kubelet has replaced it
        account.rotate("second")
        await server.watched(PODS, 5)
        server.put(PODS, pod_object("web", SAYS_OFF))
        assert await told.next() == AdviceSeen(WEB, OFF)

    assert caplog.text.count("401 Unauthorized: Unauthorized") == 1
    assert len(server.asked(PODS, watch=False)) == 1


async def test_a_rotated_token_is_used_without_a_failure(
    server: FakeApiServer, source: KubernetesAdvice, account: Account, pauses: Pauses
) -> None:
    async with listening(source) as told:
        await told.next()
        await server.watched(PODS)
        await server.watched(NAMESPACES)
        server.bookmark(PODS)
        account.rotate("second")
        server.token = "second"
        server.end_watches(PODS, End.CLEAN)
        await server.watched(PODS, 2)

    assert len(pauses.seconds) == 1


async def test_a_busy_server_says_when_to_come_back(
    server: FakeApiServer, source: KubernetesAdvice, pauses: Pauses
) -> None:
    server.refusals[f"GET {PODS}"] = [429]
    async with listening(source) as told:
        assert WEB in listed(await told.next())

    assert max(pauses.seconds[1:]) == 7.0  # its Retry-After


async def test_without_the_right_nothing_is_told_but_why(
    server: FakeApiServer, source: KubernetesAdvice, caplog: pytest.LogCaptureFixture
) -> None:
    """What namespaces say is not known, which is not that they say nothing."""
    server.forbidden.add(f"GET {NAMESPACES}")
    async with listening(source) as told:
        await server.until_asked("GET", NAMESPACES, 3)
        await server.watched(PODS)
        server.put(PODS, pod_object("web", SAYS_OFF))
        server.forbidden.clear()
        assert listed(await told.next()).keys() == {WEB, NamespaceName("shop")}

    assert caplog.text.count("403 Forbidden: may not GET /api/v1/namespaces (try: give") == 1


async def test_the_first_request_is_at_a_random_time(
    source: KubernetesAdvice, pauses: Pauses
) -> None:
    async with listening(source) as told:
        await told.next()

    assert 0.0 < pauses.seconds[0] < 30.0


async def test_a_server_that_is_not_there_is_tried_again(
    account: Account, pauses: Pauses, caplog: pytest.LogCaptureFixture
) -> None:
    environ = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": "1"}
    access = InCluster(account.mounted, environ)
    async with listening(KubernetesAdvice(NODE, access, timing=pauses.timing)) as told:
        await pauses.taken(9)
        assert told.nothing()

    assert len(caplog.records) == 2  # pods, and namespaces
    assert "Cannot connect to host 127.0.0.1:1" in caplog.text


async def test_outside_a_cluster_it_says_so(
    account: Account, pauses: Pauses, caplog: pytest.LogCaptureFixture
) -> None:
    access = InCluster(account.mounted, {})
    async with listening(KubernetesAdvice(NODE, access, timing=pauses.timing)):
        await pauses.taken(5)

    assert "find the API server: Service host/port is not set. (try: run accel in" in caplog.text


async def test_by_a_kubeconfig(
    server: FakeApiServer, certificate: Certificate, pauses: Pauses, tmp_path: Path
) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text(f"""
apiVersion: v1
kind: Config
current-context: c
contexts: [{{name: c, context: {{cluster: k, user: u}}}}]
clusters:
- name: k
  cluster: {{server: "https://127.0.0.1:{server.port}", certificate-authority: {certificate.file}}}
users: [{{name: u, user: {{token: first}}}}]
""")
    source = KubernetesAdvice(NODE, KubeConfig(path), timing=pauses.timing)
    async with listening(source) as told:
        assert WEB in listed(await told.next())


async def test_a_certificate_of_another_authority_is_refused(
    server: FakeApiServer, account: Account, source: KubernetesAdvice, pauses: Pauses
) -> None:
    (account.mounted.directory / "ca.crt").write_text("no certificate")
    async with listening(source) as told:
        await pauses.taken(5)
        assert told.nothing()
    assert not server.requests


async def test_where_the_client_is_not_installed(
    source: KubernetesAdvice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "kubernetes_asyncio", None)

    async with aclosing(source.events()) as events:
        with pytest.raises(ApiServerError) as raised:
            await anext(events)
    assert raised.value.remedy is not None
    assert "accel[kubernetes]" in raised.value.remedy


def test_the_client_is_not_imported_before_it_is_wanted() -> None:
    """It takes 63 MiB and half a second."""
    program = (
        "import sys, accel.cli, accel.agent, accel.publisher\n"
        "import accel.sources.kubernetes, accel.sources.kubelet\n"
        "print([m for m in sys.modules if m.startswith(('kubernetes_asyncio', 'aiohttp'))])"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    assert (run.stdout, run.stderr) == ("[]\n", "")


def test_the_nodes_name_is_given_not_guessed() -> None:
    assert find_node_name("here", {"NODE_NAME": "there"}) == "here"
    assert find_node_name("", {"NODE_NAME": "there"}) == "there"
    with pytest.raises(SettingsError, match="not given"):
        find_node_name("", {"HOSTNAME": "pod-1"})


def listed(event: AdviceEvent) -> Mapping[Subject, Advice]:
    assert isinstance(event, AdviceListed)
    return event.advice
