/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * What the BPF programs and the agent say to each other.
 *
 * accel/datapath/layout.py mirrors this file; the two are held together through
 * the BTF of the built object.  Fixed-width types only, padding spelt out, no
 * kernel headers: this file compiles anywhere.
 */
#ifndef ACCEL_H
#define ACCEL_H

/*
 * Why a connection is not accelerated, or why a message went by TCP.  The names
 * are what people read (accel status, accel connections), so they are stable.
 */
#define REASONS(X) \
	X(none)			/* it is accelerated */ \
	/* of a connection, for good */ \
	X(no_peer)		/* the other end is not in a meshed pod of this node */ \
	X(remote)		/* a sidecar's connection to an address that is no pod's here */ \
	X(roles)		/* not an app and its own sidecar, nor the sidecars of two pods */ \
	X(fionread)		/* enrolled, an app's FIONREAD would be wrong on this kernel */ \
	X(blocking)		/* an untrusted app reads this socket blocking */ \
	X(repaired)		/* made by TCP_REPAIR, not by a handshake */ \
	X(mptcp) \
	X(fast_open)		/* data travelled with the SYN */ \
	X(self_connected) \
	X(kernel_socket) \
	X(upper_layer)		/* kTLS or another ULP, or the like asked for it */ \
	X(zero_copy)		/* MSG_ZEROCOPY, or the like asked for it */ \
	X(early_data)		/* bytes were already on their way when it was established */ \
	X(duplicate)		/* its sequence numbers belong to another connection */ \
	X(connections_full)	/* no room to remember it */ \
	X(sockets_full)		/* no room in the sockhash */ \
	X(no_storage)		/* the socket has no memory left for our note on it */ \
	X(socket_taken)		/* another sockmap user has the socket */ \
	X(enrol_failed)		/* the sockhash refused it for another reason */ \
	/* of a message, for now */ \
	X(pending)		/* the other end is not established yet */ \
	X(off)			/* acceleration is off on this node */ \
	X(paused)		/* acceleration of a pod is paused */ \
	X(withdrawn)		/* a pod is no longer meshed */ \
	X(untrusted)		/* the receiver is an app that is not trusted */ \
	X(splices)		/* the receiver is known to read by splice */ \
	X(closing)		/* one end has begun to close */ \
	X(two_queues)		/* the receiver would miss what waits in the second queue */ \
	X(low_water)		/* the receiver waits for more than one byte */ \
	X(peer_busy)		/* the receiver's socket is locked: a redirect would wait */ \
	X(in_tcp)		/* earlier bytes of this direction are in the TCP path */ \
	X(settled)		/* bytes went by TCP to a reader that may sleep in it: for ever */ \
	X(queue_bytes)		/* the receiver is behind: bytes */ \
	X(queue_messages)	/* the receiver is behind: messages */ \
	X(not_accepted)		/* not accepted yet, and this kernel would misaccount */ \
	X(no_memory)		/* TCP's memory, or the receiver's memory cgroup, is nearly used up */ \
	X(peer_gone)		/* the other end left */

#define REASON_ENUM(name) REASON_##name,
#define REASON_FIELD(name) __u64 name;

enum { REASONS(REASON_ENUM) REASON_COUNT };

/* A counter for each reason; BTF carries the names to the agent. */
struct reasons {
	REASONS(REASON_FIELD)
};

enum {
	ROLE_NONE,
	ROLE_APP,
	ROLE_SIDECAR,
	ROLE_EXCLUDED,		/* never touched, as hand-picked by the agent */
};

enum {
	HOP_NONE,
	HOP_APP_SIDECAR,	/* an app's connection to its own sidecar */
	HOP_SIDECAR_SIDECAR,	/* between the sidecars of two pods */
	HOP_SIDECAR_APP,	/* a sidecar's connection to its own app */
	HOP_COUNT,
};

/* Which end of a connection; a direction goes by the end that sends. */
enum {
	ACTIVE,			/* called connect(); sends the requests */
	PASSIVE,		/* called accept(); sends the responses */
	ENDS,
};

enum {
	VERDICT_PENDING,	/* the passive end has not spoken yet */
	VERDICT_ACCEPTED,
	VERDICT_REFUSED,
};

/* A pod: a network namespace that holds a sidecar. */
enum {
	POD_TRUST_APPS = 1,	/* its apps read sockets the ordinary way */
	POD_ENROL_APPS = 2,	/* an untrusted app's socket may be in the sockhash */
	POD_ROLES_BY_UID = 4,	/* proxy and app share a cgroup: the uid tells them apart */
	POD_STOPS_SHORT = 8,	/* its proxy takes a short read for the end of what waits */
};

struct pod {
	__u32 flags;
	__u32 proxy_uid;	/* with POD_ROLES_BY_UID */
};

/* What is known of a container's programs. */
enum {
	CONTAINER_SPLICES = 1,	/* one reads sockets by splice, which misses redirected bytes */
};

struct container {
	__u32 netns;		/* the only namespace in which this holds */
	__u32 role;
	__u32 flags;
};

/* IPv6, or IPv4 as ::ffff:a.b.c.d; network order. */
struct address {
	__u8 bytes[16];
};

/*
 * A connection, by the first sequence number of either end.  Both ends know both
 * numbers when they are established, whatever NAT does to the addresses.
 * Host order.
 */
struct connection_key {
	__u32 active_seq;
	__u32 passive_seq;
};

/* One of the two sockets of a connection. */
struct socket_key {
	struct connection_key connection;
	__u32 end;
};

enum {
	END_ENROLLED = 1,	/* it is, or was, in the sockhash */
	END_LEFT = 2,		/* it was taken out again */
	END_ONE_QUEUE = 4,	/* it reads redirected bytes and TCP's from one queue */
};

struct end {
	__u64 sock;		/* kernel address of the tcp_sock; 0: end not seen */
	__u64 cookie;		/* tells whether the address still is that socket */
	__u64 cgroup_id;
	struct address local_address;
	struct address remote_address;
	__u16 local_port;	/* host order */
	__u16 remote_port;	/* host order */
	__u32 netns;
	__u32 uid;
	__u8 role;
	__u8 state;		/* END_* */
	__u8 _pad[2];
};

enum {
	MEMORY_PLENTY,
	MEMORY_SCARCE,
	MEMORY_LACKS,
};

/* What one end sends.  Written by that end only, under its socket lock. */
struct direction {
	__u64 messages_redirected;
	__u64 bytes_redirected;
	__u64 messages_tcp;
	__u64 bytes_tcp;
	__u32 queued_messages;	/* redirected since the receiver's queue was seen empty */
	__u32 queued_bytes;
	__u32 clear_at;		/* sender's write_seq when it had nothing in the TCP path */
	__u32 epoch;		/* when `policy` was worked out */
	__u8 policy;		/* REASON_* against redirecting at all, or none */
	__u8 reason;		/* REASON_* the last message went by TCP, or none */
	__u8 from_untrusted;	/* the sender is an app that is not trusted; as of `epoch` */
	__u8 memory;		/* MEMORY_*: what the receiver could be charged */
	__u32 memory_asked;	/* when `memory` was found out, in jiffies */
};

struct connection {
	__u64 established_ns;	/* CLOCK_MONOTONIC */
	struct end ends[ENDS];
	struct direction directions[ENDS];
	__u32 closed;		/* how many ends have closed */
	__u8 verdict;
	__u8 hop;
	__u8 reason;		/* REASON_* it was refused for */
	__u8 _pad;
};

/* What an end is doing now, beside its record: see accel_look. */
struct live_end {
	__u32 tcp_state;	/* TCP_*; 0: the socket is gone */
	__u32 queued_bytes;	/* received and not read, as far as the kernel charges it */
};

/*
 * One item of the connection list.  accel_look is given LISTINGS_AT_ONCE of them or fewer,
 * after an Ethernet header of zeros and two bytes, with only their keys set.  More would
 * not fit the packet that every architecture's bpf_prog_test_run_skb() has room for: a page
 * of 4096 bytes, less headroom and struct skb_shared_info, 3328 bytes on s390x.
 */
enum {
	LISTINGS_START = 16,
	LISTINGS_AT_ONCE = 11,
};

struct listing {
	struct connection_key key;
	struct connection connection;	/* established_ns 0: it is gone */
	struct live_end live[ENDS];
};

/* Messages of one direction of one hop, on one CPU; they only ever grow. */
struct traffic {
	__u64 messages_redirected;
	__u64 bytes_redirected;
	__u64 messages_tcp;
	__u64 bytes_tcp;
	struct reasons messages_tcp_by_reason;
};

/* Connections of meshed pods, on one CPU; they only ever grow. */
struct verdicts {
	__u64 accepted;
	__u64 evicted;		/* enrolled, and taken out when no peer appeared */
	__u64 events_lost;	/* the ring buffer was full */
	__u64 options_refused;	/* setsockopt() that an enrolled socket cannot bear */
	struct reasons refused;
};

enum {
	EVENT_ACCEPTED = 1,
	EVENT_REFUSED,
	EVENT_EVICTED,
	EVENT_CLOSED,
};

struct event {
	__u64 at_ns;		/* CLOCK_MONOTONIC */
	__u32 kind;		/* EVENT_* */
	__u32 _pad;
	struct connection_key key;
	struct connection connection;
};

#endif
