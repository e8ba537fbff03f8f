"""Wires to other programs of the node: protobuf, gRPC and ttrpc over unix sockets.

    protobuf              messages as dataclasses, to bytes and back
    cri containerd nri    the messages of one API each; nothing but data
    grpc                  calls to a gRPC server
    ttrpc                 calls to and from an NRI runtime

Knows nothing of pods.  What a server sends is foreign: whatever the bytes are, they end
in a message, WireError or RpcError, and no number in them decides how much memory is taken.
"""
