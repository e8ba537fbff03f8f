"""A process that makes sockets for the tests, and nothing else.

A socket keeps the network namespace, the cgroup and the uid of whoever called socket(2),
wherever its descriptor travels afterwards.  So a container is stood for by one of these,
and the test itself holds and uses all of its sockets.

Run as a script: ``maker.py CHANNEL NETNS CGROUP UID``; the first two are inherited
descriptors, NETNS is -1 to stay where we are.
"""

from __future__ import annotations

import array
import ctypes
import json
import os
import socket
import sys

CLONE_NEWNET = 0x40000000


def enter(netns: int, cgroup: str, uid: int) -> None:
    """Move this process to where its sockets shall belong."""
    with open(f"{cgroup}/cgroup.procs", "w", encoding="ascii") as procs:
        procs.write("0")
    # os.setns() is in Python from 3.12 on.
    libc = ctypes.CDLL(None, use_errno=True)
    if netns >= 0 and libc.setns(netns, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def serve(channel: socket.socket) -> None:
    """Answer each request, ``[family, protocol, count]``, with that many TCP sockets."""
    channel.send(b"ready")
    while request := channel.recv(1024):
        family, protocol, count = json.loads(request)
        made = [socket.socket(family, socket.SOCK_STREAM, protocol) for _ in range(count)]
        fds = array.array("i", [sock.fileno() for sock in made])
        channel.sendmsg([b"made"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
        for sock in made:
            sock.close()


if __name__ == "__main__":
    enter(int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
    serve(socket.socket(fileno=int(sys.argv[1])))
