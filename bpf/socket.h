/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/* What a socket tells of itself and of its peer.  Reads only; decides nothing. */
#ifndef ACCEL_SOCKET_H
#define ACCEL_SOCKET_H

#include "accel.h"
#include "kernel.h"

#define inline_ static __always_inline

inline_ struct sock *sock_of(struct tcp_sock *tp)
{
	return &tp->inet_conn.icsk_inet.sk;
}

inline_ __u32 netns_of(struct tcp_sock *tp)
{
	return sock_of(tp)->__sk_common.skc_net.net->ns.inum;
}

/* 0 where the socket belongs to no v2 cgroup. */
inline_ __u64 cgroup_id_of(struct tcp_sock *tp)
{
	struct sock_cgroup_data *data = &sock_of(tp)->sk_cgrp_data;
	struct cgroup *cgroup;

	if (bpf_core_field_exists(data->cgroup))
		return data->cgroup->kn->id;

	cgroup = (void *)BPF_CORE_READ((struct sock_cgroup_data___union *)data, val);
	if ((long)cgroup & 1)
		return 0;
	return BPF_CORE_READ(cgroup, kn, id);
}

/*
 * Would a read of this socket return rather than sleep?  A socket not yet accepted
 * has no file, and nobody reads it.  A null pointer on the way reads as 0.
 */
inline_ _Bool is_nonblocking(struct tcp_sock *tp)
{
	return sock_of(tp)->sk_socket->file->f_flags & O_NONBLOCK_FLAG;
}

inline_ _Bool is_accepted(struct tcp_sock *tp)
{
	return sock_of(tp)->sk_socket->file != 0;
}

/* Does anybody sleep in recv(), poll() or the like? */
inline_ _Bool is_awaited(struct tcp_sock *tp)
{
	struct socket_wq *wq = BPF_CORE_READ(sock_of(tp), sk_wq);

	return wq && BPF_CORE_READ(wq, wait.head.next) !=
		     __builtin_preserve_access_index(&wq->wait.head);
}

inline_ _Bool has_flag(struct tcp_sock *tp, __u64 flag)
{
	return sock_of(tp)->__sk_common.skc_flags >> flag & 1;
}

/* The reason never to touch this newly established socket, or none. */
inline_ __u8 unfit(struct bpf_sock_ops *ctx, struct tcp_sock *tp)
{
	/* TCP_REPAIR calls back without a segment; it could forge sequence numbers. */
	if (!ctx->skb_data)
		return REASON_repaired;
	if (bpf_core_field_exists(tp->is_mptcp) && tp->is_mptcp)
		return REASON_mptcp;
	if (BPF_CORE_READ_BITFIELD(tp, syn_data) || BPF_CORE_READ_BITFIELD(tp, syn_fastopen))
		return REASON_fast_open;
	if (tp->snd_nxt == tp->rcv_nxt)
		return REASON_self_connected;
	if (BPF_CORE_READ_BITFIELD(sock_of(tp), sk_kern_sock))
		return REASON_kernel_socket;
	if (tp->inet_conn.icsk_ulp_ops)
		return REASON_upper_layer;
	if (tp->write_seq != tp->snd_nxt)
		return REASON_early_data;
	if (has_flag(tp, bpf_core_enum_value(enum sock_flags, SOCK_ZEROCOPY)))
		return REASON_zero_copy;
	/* It would read too few of redirected bytes, and from one queue none below the mark. */
	if (sock_of(tp)->sk_rcvlowat > 1)
		return REASON_low_water;
	return REASON_none;
}

/*
 * A peer is reached through the address it recorded.  Socket memory is reused, but
 * stays a socket's under rcu_read_lock (SLAB_TYPESAFE_BY_RCU): the cookie tells
 * whose.  A stale answer costs one message its short cut, or lets one too many into
 * a queue; whether there is a socket to redirect to, the sockhash decides.
 */
#define peer_read(end, field) \
	({ struct tcp_sock *peer_ = (void *)(end)->sock; BPF_CORE_READ(peer_, field); })
#define peer_sock(end, field) peer_read(end, inet_conn.icsk_inet.sk.field)

inline_ _Bool is_still(const struct end *end)
{
	return end->sock && peer_sock(end, __sk_common.skc_cookie.counter) == (__s64)end->cookie;
}

inline_ _Bool peer_is_nonblocking(const struct end *end)
{
	struct socket *socket = peer_sock(end, sk_socket);

	return BPF_CORE_READ(socket, file, f_flags) & O_NONBLOCK_FLAG;
}

inline_ struct sk_psock *psock_of(const struct end *end)
{
	unsigned long data = (unsigned long)peer_sock(end, sk_user_data);

	return (void *)(data & ~SK_USER_DATA_FLAGS);
}

/* Nothing redirected waits there.  True also where the peer has no psock. */
inline_ _Bool psock_is_empty(const struct end *end)
{
	struct sk_psock *psock = psock_of(end);

	if (!psock)
		return 1;
	return BPF_CORE_READ(psock, ingress_msg.next) ==
	       __builtin_preserve_access_index(&psock->ingress_msg);
}

/* What accel_pass let through and the kernel had no memory to queue at once: segments. */
inline_ __u32 psock_backlog(const struct end *end)
{
	struct sk_psock *psock = psock_of(end);

	return psock ? BPF_CORE_READ(psock, ingress_skb.qlen) : 0;
}

/* As ::ffff:a.b.c.d for IPv4, so that both ends of a v4-mapped connection agree. */
inline_ void mapped(struct address *address, __u32 ip4)
{
	__builtin_memset(address, 0, sizeof(*address));
	address->bytes[10] = 0xff;
	address->bytes[11] = 0xff;
	__builtin_memcpy(address->bytes + 12, &ip4, 4);
}

/* volatile: the context may be read in words only, and clang would merge two. */
inline_ void copy_ip6(struct address *address, const volatile __u32 words[4])
{
	__u32 copy[4] = { words[0], words[1], words[2], words[3] };

	__builtin_memcpy(address, copy, sizeof(copy));
}

inline_ void read_addresses(struct bpf_sock_ops *ctx, struct end *end)
{
	if (ctx->family == AF_INET6) {
		copy_ip6(&end->local_address, ctx->local_ip6);
		copy_ip6(&end->remote_address, ctx->remote_ip6);
	} else {
		mapped(&end->local_address, ctx->local_ip4);
		mapped(&end->remote_address, ctx->remote_ip4);
	}
	end->local_port = ctx->local_port;
	/* A network-order u32 that carries the port in its last two bytes. */
	end->remote_port = bpf_ntohl(ctx->remote_port);
}

inline_ _Bool is_loopback(const struct address *address)
{
	__u64 high, low;

	__builtin_memcpy(&high, address->bytes, 8);
	__builtin_memcpy(&low, address->bytes + 8, 8);
	if (high)
		return 0;
	low = bpf_be64_to_cpu(low);
	return low == 1 || (low >> 24) == 0xffff7f;	/* ::1, ::ffff:127.0.0.0/104 */
}

#endif
