/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/* Every map: who writes it, who reads it, how long an entry lives. */
#ifndef ACCEL_MAPS_H
#define ACCEL_MAPS_H

#include "accel.h"

/*
 * The switches.  Written by the agent and the command line, read by the programs.
 * Whoever changes one, or any map below that the agent writes, adds one to `epoch`
 * afterwards: it makes every direction work out its policy anew.
 */
volatile __u32 enabled = 1;		/* 0: every message goes by TCP */
volatile __u32 epoch = 1;
volatile __u32 events_wanted = 0;	/* somebody reads the ring buffer */

/* Facts of this kernel, found by the agent's self-test; fixed at load. */
const volatile __u32 charges_rmem = 0;	/* redirected bytes count in sk_rmem_alloc */
const volatile __u32 one_queue = 0;	/* accel_pass is on one_queue_sockets */

/*
 * Messages that may wait in a receiver's queue.  Each takes a kmalloc-1k object
 * beside its bytes, which no socket buffer limit counts (struct sk_msg, 6.18).
 */
const volatile __u32 max_queued_messages = 256;

/* Meshed pods by network namespace inode.  Written by the agent alone. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct pod);
} pods SEC(".maps");

/* Containers of those pods by cgroup id.  One not found here is an app. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u64);
	__type(value, struct container);
} containers SEC(".maps");

/* Addresses of those pods, and the namespace that holds each. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct address);
	__type(value, __u32);
} addresses SEC(".maps");

/* Pods whose acceleration is paused.  Written by the command line; the value says nothing. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, __u32);
} paused SEC(".maps");

/*
 * Sockets that may redirect or be redirected to.  An entry is written when the
 * socket is established and leaves by itself when it closes.
 */
struct {
	__uint(type, BPF_MAP_TYPE_SOCKHASH);
	__uint(max_entries, 131072);
	__type(key, struct socket_key);
	__type(value, __u64);
} sockets SEC(".maps");

/*
 * The same for receivers that need one queue (needs_one_queue()), where there is one.
 * Without a verdict program a reader finds redirected bytes and TCP's in two queues: a
 * read ends where the first does (so an edge-triggered reader that stops at a short
 * read, as epoll(7) allows and nginx, Netty and tokio do, sleeps on the rest), and since
 * 929e30f93125 FIONREAD counts the first alone.  With one, TCP's bytes join the first as
 * they arrive.
 *
 * Nobody is here without need: such a socket must not leave with bytes unread, or they
 * are lost and copied_seq is wrong for ever (tcp_recvmsg_locked() warns, Linux 6.18);
 * and if it closes with bytes unread no reset is sent, so a sender that waits for its
 * window learns of it by a window probe only (peer_finished()).
 */
struct {
	__uint(type, BPF_MAP_TYPE_SOCKHASH);
	__uint(max_entries, 131072);
	__type(key, struct socket_key);
	__type(value, __u64);
} one_queue_sockets SEC(".maps");

/* Which connection a socket is an end of; lives as long as the socket. */
struct socket_state {
	struct socket_key key;
	__u32 leave;		/* take it out of `sockets` at the next RTT sample */
};

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct socket_state);
} socket_states SEC(".maps");

/*
 * Connections with an end in a meshed pod.  An entry is written by the first end
 * to be established and deleted by the last to close; the agent sweeps what was
 * missed, as when another sock_ops program cleared our callback flags.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct connection_key);
	__type(value, struct connection);
} connections SEC(".maps");

/*
 * What a container was seen to do with a socket that does not go with being enrolled:
 * a REASON_*, by which later sockets of that kind stay out from the start.
 */
struct origin {
	__u64 cgroup_id;
	__u32 netns;
	__u32 port;	/* of the listener, told anew at listen(); 0: made by connect() */
};

/* With the reason: so far only presumed, of a listener that blocks itself. */
#define PRESUMED 0x100

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct origin);
	__type(value, __u32);
} kept_out SEC(".maps");

/* Messages by hop * 2 + direction; hop 0 holds those before a verdict. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, HOP_COUNT * ENDS);
	__type(key, __u32);
	__type(value, struct traffic);
} traffic SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct verdicts);
} verdicts SEC(".maps");

/*
 * Never used: it brings into BTF what crosses to user space outside of maps.  By
 * value, as clang leaves no more than a name of what is only pointed to.
 */
struct {
	struct event event;
	struct listing listing;
} streams;

/* struct event, while events_wanted. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} events SEC(".maps");

#endif
