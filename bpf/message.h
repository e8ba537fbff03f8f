/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/* Whether one message may be redirected: asked anew for each. */
#ifndef ACCEL_MESSAGE_H
#define ACCEL_MESSAGE_H

#include "maps.h"
#include "socket.h"
#include "account.h"
#include "verdict.h"

/* Condition 1, the part that changes only when somebody changes a map. */
inline_ __u8 policy_of(struct connection *c, struct direction *d, __u32 from)
{
	struct pod *active, *passive;
	_Bool by_active = from == ACTIVE;

	if (!enabled)
		return REASON_off;
	active = bpf_map_lookup_elem(&pods, &c->ends[ACTIVE].netns);
	passive = bpf_map_lookup_elem(&pods, &c->ends[PASSIVE].netns);
	if (!active || !passive)
		return REASON_withdrawn;
	d->from_untrusted = distrust(end_of(c, from), by_active ? active : passive) != REASON_none;
	if (bpf_map_lookup_elem(&paused, &c->ends[ACTIVE].netns) ||
	    bpf_map_lookup_elem(&paused, &c->ends[PASSIVE].netns))
		return REASON_paused;
	return against_reading(end_of(c, !from), by_active ? passive : active);
}

/* Asks policy_of() again only when something changed: it costs six look-ups. */
inline_ __u8 policy(struct connection *c, struct direction *d, __u32 from)
{
	__u32 now = epoch;	/* read first: a change in between is seen next time */

	if (d->epoch != now) {
		d->policy = policy_of(c, d, from);
		d->epoch = now;
	}
	return d->policy;
}

/*
 * The reason why the sender should not be enrolled, or none; it leaves if it can.
 *
 * zero_copy: set before it was enrolled, after the guard had looked.
 *
 * blocking: an app that blocks in recv() gets a spurious EAGAIN when a signal or a
 * reset wakes it, by mere enrolment (tcp_bpf_recvmsg(), every version).  The listener
 * is remembered, so that only its first connection is exposed, until its first answer;
 * and not that one either where the listener blocks as well.
 */
inline_ __u8 leaves(const struct direction *d, struct socket_state *state, struct tcp_sock *tp,
		    const struct end *sender)
{
	if (has_flag(tp, bpf_core_enum_value(enum sock_flags, SOCK_ZEROCOPY))) {
		state->leave = 1;
		return REASON_zero_copy;
	}
	if (!d->from_untrusted || is_nonblocking(tp))
		return REASON_none;
	state->leave = 1;
	if (state->key.end == PASSIVE)
		keep_out(sender, PASSIVE, REASON_blocking);
	return REASON_blocking;
}

/*
 * Nothing of this direction is in the TCP path, neither here nor at the receiver, and
 * no reader can be asleep in tcp_recvmsg(), where redirected data would not wake it:
 * back to redirecting.  Asleep there in spite of O_NONBLOCK could only be a thread that
 * began to read before another set the flag, and that the bytes by TCP did not satisfy.
 */
inline_ __u8 back_from_tcp(struct direction *d, struct tcp_sock *tp, const struct end *receiver)
{
	__u32 end = tp->write_seq;

	if (!peer_is_nonblocking(receiver))
		return REASON_settled;
	if (tp->snd_una != end || peer_read(receiver, rcv_nxt) != end ||
	    peer_read(receiver, copied_seq) != end)
		return REASON_in_tcp;
	if (!psock_is_empty(receiver))
		return REASON_in_tcp;
	d->clear_at = end;
	d->queued_messages = 0;
	d->queued_bytes = 0;
	return REASON_none;
}

/*
 * Condition 3: nothing in the kernel bounds a psock's queue, so we do.  At most half
 * of rcvbuf, or TCP segments that follow would be dropped and wait for their
 * retransmission timeout.
 */
inline_ __u8 queue_reason(struct direction *d, const struct end *receiver, __u32 size)
{
	__u32 limit = peer_sock(receiver, sk_rcvbuf) >> 1;
	__u32 queued;

	if (charges_rmem) {
		queued = peer_sock(receiver, sk_backlog.rmem_alloc.counter);
		if (!queued)
			d->queued_messages = 0;
	} else {
		if (psock_is_empty(receiver)) {
			d->queued_messages = 0;
			d->queued_bytes = 0;
		}
		queued = d->queued_bytes;
	}
	if (queued + size > limit)
		return REASON_queue_bytes;
	if (d->queued_messages >= max_queued_messages)
		return REASON_queue_messages;
	return REASON_none;
}

#define PAGE_SHIFT 12			/* or more: then we ask for too much, no harm */
#define CGROUP_LEVELS 8
/*
 * Left alone, 4 MB: 64 pages that a CPU takes at once (MEMCG_CHARGE_BATCH), and a message of
 * 64 KB from each of 60 CPUs that ask in the same moment.
 */
#define SPARE_PAGES 1024
/* So much more, 32 MB, is more than a jiffy's messages of whoever asked before take. */
#define PLENTY_PAGES 8192

/* What the receiver's memory cgroup, and each above it, has left for `pages` more. */
inline_ __u8 memory_of_cgroup(const struct end *receiver, __s64 pages)
{
	__u8 memory = MEMORY_PLENTY;
	struct page_counter *counter;
	struct mem_cgroup *memcg;
	_Bool v1 = 0;
	__s64 left;
	int level;

	if (!bpf_core_field_exists(struct sock, sk_memcg))
		return memory;
	memcg = peer_sock(receiver, sk_memcg);
	if (!memcg)
		return memory;
	if (bpf_core_field_exists(memcg->tcpmem_active))
		v1 = BPF_CORE_READ(memcg, tcpmem_active);
	counter = __builtin_preserve_access_index(&memcg->memory);
	if (v1)
		counter = __builtin_preserve_access_index(&memcg->tcpmem);
#pragma unroll
	for (level = 0; level < CGROUP_LEVELS; level++) {
		left = BPF_CORE_READ(counter, max) - BPF_CORE_READ(counter, usage.counter) - pages;
		if (left < SPARE_PAGES)
			return MEMORY_LACKS;
		if (left < SPARE_PAGES + PLENTY_PAGES)
			memory = MEMORY_SCARCE;
		counter = BPF_CORE_READ(counter, parent);
		if (!counter)
			break;
	}
	return memory;
}

/*
 * Could charging the receiver fail?  bpf_tcp_ingress() then answers ENOMEM, where plain
 * TCP drops the segment and makes the sender wait.  It also charges as the sender's
 * process, so a cgroup at its limit would be reclaimed, even killed in, on its behalf.
 *
 * Asked once a jiffy while there is plenty, for it costs two reads for each level of cgroups;
 * for each message where it is scarce, or many senders' messages of one jiffy could overrun it.
 */
inline_ _Bool lacks_memory(struct direction *d, struct tcp_sock *tp, const struct end *receiver,
			   __u32 size)
{
	unsigned long *pressure = sock_of(tp)->__sk_common.skc_prot->memory_pressure;
	__u32 now = bpf_jiffies64();
	unsigned long pressed = 0;

	if (d->memory_asked == now && d->memory != MEMORY_SCARCE)
		return d->memory == MEMORY_LACKS;
	bpf_probe_read_kernel(&pressed, sizeof(pressed), pressure);
	d->memory = pressed ? MEMORY_LACKS : memory_of_cgroup(receiver, size >> PAGE_SHIFT);
	d->memory_asked = now;
	return d->memory == MEMORY_LACKS;
}

/*
 * A proxy with two queues, redirected bytes in the first: what goes by TCP now it sees
 * late, or if it peeks, not at all.
 */
inline_ _Bool would_mix(const struct end *receiver)
{
	return receiver->role == ROLE_SIDECAR && !(receiver->state & END_ONE_QUEUE) &&
	       !psock_is_empty(receiver);
}

/* The reason to send this message by TCP, or none.  The conditions, in order. */
inline_ __u8 tcp_reason(struct connection *c, struct socket_state *state, struct tcp_sock *tp,
			__u32 size)
{
	const struct end *sender = end_of(c, state->key.end);
	const struct end *receiver = end_of(c, !state->key.end);
	struct direction *d = direction_of(c, state->key.end);
	unsigned char tcp_state = sock_of(tp)->__sk_common.skc_state;
	__u8 against, reason;

	if (c->verdict != VERDICT_ACCEPTED)
		return c->verdict == VERDICT_PENDING ? REASON_pending : c->reason;
	against = policy(c, d, state->key.end);
	reason = leaves(d, state, tp, sender);
	if (!reason)
		reason = against;
	if (reason)
		return reason;

	/* send() after shutdown() would succeed by redirect: TCP says EPIPE. */
	if (tcp_state != TCP_ESTABLISHED && tcp_state != TCP_CLOSE_WAIT)
		return REASON_closing;
	if (tp->inet_conn.icsk_ulp_ops)
		return REASON_upper_layer;
	if (!is_still(receiver))
		return REASON_peer_gone;
	tcp_state = peer_sock(receiver, __sk_common.skc_state);
	if (tcp_state != TCP_ESTABLISHED && tcp_state != TCP_CLOSE_WAIT)
		return REASON_closing;
	if (peer_read(receiver, inet_conn.icsk_ulp_ops))
		return REASON_upper_layer;
	/* Redirected bytes wake a reader that waits for more, and it reads too few. */
	if (peer_sock(receiver, sk_rcvlowat) > 1)
		return REASON_low_water;
	/*
	 * A redirect takes the receiver's lock, even for a send() that must not sleep
	 * (bpf_tcp_ingress(), every version).  Who holds it may be in a page fault of its
	 * buffer, which userfaultfd and FUSE can draw out for ever.  The lock may still be
	 * taken between this look and the redirect: nothing here can prevent that.
	 */
	if (peer_sock(receiver, sk_lock.owned) && !would_mix(receiver))
		return REASON_peer_busy;

	/*
	 * Without the charge, accept() would not charge more than a page to the memory
	 * cgroup that is uncharged later (inet_csk_accept(), 5.10).  All by TCP, then: a
	 * proxy that peeks at the first bytes of a connection, as Envoy does for TLS, would
	 * wait for the rest in the other queue.
	 */
	if (!charges_rmem && !peer_sock(receiver, sk_socket))
		return REASON_not_accepted;

	if (tp->write_seq != d->clear_at) {
		reason = back_from_tcp(d, tp, receiver);
		if (reason)
			return reason;
	}
	reason = queue_reason(d, receiver, size);
	if (reason)
		return reason;
	return lacks_memory(d, tp, receiver, size) ? REASON_no_memory : REASON_none;
}

/*
 * A redirect that ran out of memory half way runs the program again on the rest.  The
 * kernel then redirects it whatever we say, to msg->sk_redir of the first run, which
 * is no longer held (sk_psock_msg_verdict()): so redirect it properly once more.
 */
inline_ _Bool is_rest_of_redirected(struct sk_msg_md *msg)
{
	/* For an sk_msg program the context is the kernel's struct sk_msg. */
	return BPF_CORE_READ((struct sk_msg *)msg, sk_redir) != 0;
}

#endif
