"""Stories to tell, for hypothesis to draw."""

from __future__ import annotations

from functools import cache

from hypothesis import strategies as st

from tests.differential.calls import (
    ACTIVE,
    PASSIVE,
    AnyCall,
    Ask,
    Close,
    Counters,
    Events,
    Fill,
    Fork,
    Get,
    Info,
    Option,
    Pass,
    Pause,
    Poll,
    Receive,
    ReceiveUrgent,
    Reconnect,
    Reset,
    Resume,
    Select,
    Send,
    SendFile,
    SendUrgent,
    SendZerocopy,
    Set,
    SetBlocking,
    Shutdown,
    Signal,
    SpliceIn,
    SpliceOut,
    Step,
    Story,
    Stream,
    Watch,
)
from tests.differential.stage import Mode

SHORTEST, LONGEST = 4, 20

Calls = st.SearchStrategy[AnyCall]

SIZES = st.sampled_from([1, 2, 5, 10, 100, 1000, 1448, 4096, 5000, 16_384, 30_000])
MORE_SIZES = SIZES | st.sampled_from([65_536, 200_000, 1 << 20])
ANY_SIZE = SIZES | st.sampled_from([0, 65_536, 1 << 20])
PIECES = st.sampled_from([1000, 16_384, 65_536, 1 << 20])
SWITCH = st.sampled_from([0, 1])

# --- what proxies do: Envoy, linkerd2-proxy and the like -----------------------------------------

SEND = st.builds(
    Send,
    MORE_SIZES,
    call=st.sampled_from(["send", "write", "writev", "sendmsg"]),
    nosignal=st.booleans(),
)
RECEIVE = st.builds(
    Receive,
    MORE_SIZES,
    call=st.sampled_from(["recv", "read", "readv", "recvmsg"]),
    peek=st.sampled_from([False, False, True]),
    once=st.booleans(),
)
READY = st.sampled_from([Poll(), Watch(True), Events(), Events()])
STATE = st.sampled_from([Info(), Get(Option.ERROR), Get(Option.TYPE), Get(Option.NODELAY)])
STREAM = st.builds(Stream, st.sampled_from([100_000, 1 << 20]), PIECES)
FILL = st.builds(
    Fill,
    st.sampled_from([16_384, 65_536]),
    st.sampled_from(["drain", "drain", "reader closes", "writer closes", "writer shuts down"]),
)
END = st.sampled_from([Shutdown(1), Shutdown(1), Close(), Reset()])
PROXY_SETS = st.builds(Set, st.just(Option.NODELAY), SWITCH) | st.sampled_from(
    [Set(Option.USER_TIMEOUT, 30_000), Set(Option.KEEPALIVE, 1), Set(Option.KEEPIDLE, 60)]
)

PROXY: Calls = st.one_of(
    *(SEND, SEND, SEND, SEND, RECEIVE, RECEIVE, RECEIVE, RECEIVE),
    *(READY, READY, STATE, END, PROXY_SETS, STREAM),
)

# --- what else applications do -----------------------------------------------------------------

APP_SEND = st.one_of(
    st.builds(
        Send,
        ANY_SIZE,
        call=st.just("send"),
        dontwait=st.booleans(),
        nosignal=st.booleans(),
        more=st.sampled_from([False, False, False, True]),
    ),
    st.builds(SendFile, SIZES),
    st.builds(SpliceIn, SIZES),
)
APP_RECEIVE = st.builds(
    Receive,
    MORE_SIZES,
    call=st.sampled_from(["recv", "readv", "recvmsg"]),
    peek=st.sampled_from([False, False, True]),
    dontwait=st.booleans(),
)
ASK = st.sampled_from([Ask("FIONREAD"), Ask("FIONREAD"), Ask("SIOCOUTQ"), Ask("SIOCATMARK")])
APP_READY = st.sampled_from([Select(), Watch(False), Watch(True), Events()])
HANDS = st.one_of(
    st.just(Pass()),
    st.builds(
        Fork,
        st.one_of(
            st.builds(Send, SIZES, dontwait=st.just(True)),
            st.builds(Receive, SIZES, dontwait=st.just(True)),
            st.just(Poll()),
            st.just(Shutdown(1)),
        ),
    ),
)
APP_SETS = st.sampled_from(
    [
        *(Set(Option.RCVTIMEO, 10), Set(Option.RCVTIMEO, 0), Set(Option.SNDTIMEO, 10)),
        *(Set(Option.QUICKACK, 0), Set(Option.NOTSENT_LOWAT, 16_384), Set(Option.LINGER, 1)),
        *(Set(Option.RCVBUF, 400_000), Set(Option.SNDBUF, 400_000), Set(Option.OOBINLINE, 1)),
        *(Get(Option.LINGER), Get(Option.RCVLOWAT), Get(Option.OOBINLINE), Get(Option.ACCEPTCONN)),
        *(Get(Option.KEEPALIVE), Get(Option.KEEPIDLE), Get(Option.RCVTIMEO)),
    ]
)
APP_ENDS = st.sampled_from([Shutdown(0), Shutdown(1), Shutdown(2), Close(), Reset()])

# Sorts of calls that do not see, or do not take, the short cut.
HAZARDS: Calls = st.one_of(
    st.builds(Receive, SIZES, waitall=st.just(True)),
    st.builds(Receive, SIZES, discard=st.just(True)),
    st.builds(Set, st.just(Option.RCVLOWAT), st.sampled_from([2, 100, 10_000])),
    st.builds(SendZerocopy, SIZES),
    st.builds(SpliceOut, SIZES),
    st.sampled_from(
        [
            *(SendUrgent(), ReceiveUrgent(), Counters(), Signal(True), Signal(False)),
            *(Set(Option.TIMESTAMP, 1), Set(Option.INQ, 1), Reconnect()),
        ]
    ),
    st.booleans().map(SetBlocking),
)

APP: Calls = st.one_of(PROXY, PROXY, PROXY, APP_SEND, APP_RECEIVE, ASK, APP_READY, HANDS, APP_SETS)
APP_ENDING: Calls = st.one_of(APP, APP, APP, APP_ENDS)
ADVENTUROUS: Calls = st.one_of(APP, APP, HAZARDS, HAZARDS, APP_ENDS)

WEATHER: Calls = st.sampled_from([Pause(), Resume()])


@cache
def stories(mode: Mode) -> st.SearchStrategy[Story]:
    """For both ends as they are in `mode`; one in three has hazards, if an app is there."""
    if mode.app is None:
        return st.builds(Story, _steps(mode, PROXY))
    blocks = st.sampled_from([(False, False), (mode.app == 0, mode.app == 1)])
    listens = st.booleans() if mode.app == PASSIVE else st.just(False)
    return st.one_of(
        *(
            st.builds(Story, _steps(mode, of_app), blocks, listens)
            for of_app in (APP, APP_ENDING, ADVENTUROUS)
        )
    )


def _steps(mode: Mode, of_app: Calls) -> st.SearchStrategy[tuple[Step, ...]]:
    # Fill takes as long as twenty others together.
    rare = st.builds(Step, st.sampled_from([ACTIVE, PASSIVE]), WEATHER | WEATHER | FILL)
    usual = [
        st.builds(Step, st.just(end), of_app if end == mode.app else PROXY)
        for end in (ACTIVE, PASSIVE)
    ]
    any_step = st.one_of(*usual * 8, rare)
    return st.lists(any_step, min_size=SHORTEST, max_size=LONGEST).map(tuple)
