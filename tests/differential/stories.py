"""Stories to tell, for hypothesis to draw."""

from __future__ import annotations

from hypothesis import strategies as st

from tests.differential.calls import (
    AnyCall,
    Ask,
    Close,
    Counters,
    End,
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


@st.composite
def stories(draw: st.DrawFn, mode: Mode) -> Story:
    """For both ends as they are in `mode`; one in three has hazards, if an app is there."""
    app = mode.app
    of_app = draw(st.sampled_from([APP, APP_ENDING, ADVENTUROUS])) if app is not None else PROXY

    def steps_of(end: End) -> st.SearchStrategy[Step]:
        return st.builds(Step, st.just(end), of_app if end == app else PROXY)

    # Fill takes as long as twenty others together.
    rare = st.builds(Step, st.sampled_from([0, 1]), WEATHER | WEATHER | FILL)
    usual = steps_of(0) | steps_of(1)
    any_step = st.integers(0, 15).flatmap(lambda n: usual if n else rare)
    steps = draw(st.lists(any_step, min_size=SHORTEST, max_size=LONGEST))
    blocking = [False, False]
    if app is not None:
        blocking[app] = draw(st.booleans())
    return Story(tuple(steps), (blocking[0], blocking[1]))
