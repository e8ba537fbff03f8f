/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/* Whether a connection may be accelerated at all: decided once, when it is established. */
#ifndef ACCEL_VERDICT_H
#define ACCEL_VERDICT_H

#include "maps.h"
#include "socket.h"
#include "account.h"

/*
 * By the cgroup of the socket, which a process cannot forge by picking the proxy's
 * uid; by that uid only where the agent found no other way.
 */
inline_ __u8 role_of(const struct end *end, const struct pod *pod)
{
	struct container *container;

	container = bpf_map_lookup_elem(&containers, &end->cgroup_id);
	if (container && container->netns == end->netns)
		return container->role;
	if (pod->flags & POD_ROLES_BY_UID && end->uid == pod->proxy_uid)
		return ROLE_SIDECAR;
	return ROLE_APP;
}

/* The container's flags; one that the agent did not name has none. */
inline_ __u32 container_flags(const struct end *end)
{
	struct container *container = bpf_map_lookup_elem(&containers, &end->cgroup_id);

	return container && container->netns == end->netns ? container->flags : 0;
}

/* The reason to redirect nothing into this end, or none. */
inline_ __u8 distrust(const struct end *end, const struct pod *pod)
{
	if (end->role != ROLE_SIDECAR && !(pod->flags & POD_TRUST_APPS))
		return REASON_untrusted;
	return container_flags(end) & CONTAINER_SPLICES ? REASON_splices : REASON_none;
}

/*
 * Does this end read right only what waits in one queue?  An app is anything, and a proxy
 * may stop at a short read, which epoll(7) allows: it would sleep on what came by TCP
 * behind redirected bytes.
 */
inline_ _Bool needs_one_queue(const struct end *end, const struct pod *pod)
{
	return end->role != ROLE_SIDECAR || pod->flags & POD_STOPS_SHORT;
}

/*
 * The reason not to redirect into this end, or none.  An app that came to be trusted
 * after it was established did not enter the one queue.  Where there is none, an app is
 * trusted by force only.
 */
inline_ __u8 against_reading(const struct end *end, const struct pod *pod)
{
	__u8 reason = distrust(end, pod);

	if (reason || end->state & END_ONE_QUEUE || !needs_one_queue(end, pod))
		return reason;
	return one_queue || end->role == ROLE_SIDECAR ? REASON_two_queues : REASON_none;
}

inline_ struct origin origin_of(const struct end *end, __u32 which)
{
	struct origin origin = {
		.cgroup_id = end->cgroup_id,
		.netns = end->netns,
		.port = which == PASSIVE ? end->local_port : 0,
	};

	return origin;
}

/* Later sockets of this one's kind stay out, for this reason. */
inline_ void keep_out(const struct end *end, __u32 which, __u32 reason)
{
	struct origin origin = origin_of(end, which);

	bpf_map_update_elem(&kept_out, &origin, &reason, BPF_ANY);
}

/* The reason for which such sockets of its container stay out, or none. */
inline_ __u8 learnt(const struct end *end, __u32 which, const struct pod *pod)
{
	struct origin origin = origin_of(end, which);
	__u32 *reason = bpf_map_lookup_elem(&kept_out, &origin);

	if (!reason || ((__u8)*reason == REASON_blocking && !distrust(end, pod)))
		return REASON_none;
	return *reason;
}

/*
 * The first answer of a socket that was kept out because its listener blocks: does it
 * read blocking too?  Tomcat accepts blocking and reads non-blocking.
 */
inline_ void learn(struct tcp_sock *tp, const struct end *end)
{
	struct origin origin = origin_of(end, PASSIVE);
	__u32 *presumed = bpf_map_lookup_elem(&kept_out, &origin);

	if (!presumed || *presumed != (REASON_blocking | PRESUMED))
		return;
	if (is_nonblocking(tp))
		bpf_map_delete_elem(&kept_out, &origin);
	else
		*presumed = REASON_blocking;
}

/* The reason to keep an app's socket out of the sockhash, or none. */
inline_ __u8 app_refusal(const struct pod *pod)
{
	return pod->flags & (POD_TRUST_APPS | POD_ENROL_APPS) ? REASON_none : REASON_fionread;
}

/*
 * The active end speaks first and has to guess: enrolled now or never
 * (bpf_sock_hash_update() works in this callback only).  A wrong guess leaves at
 * the first RTT sample.
 */
inline_ __u8 active_refusal(struct tcp_sock *tp, const struct end *end, const struct pod *pod)
{
	__u32 *netns;
	__u8 reason = learnt(end, ACTIVE, pod);

	if (reason)
		return reason;
	if (end->role == ROLE_APP) {
		reason = app_refusal(pod);
		if (!reason && !is_nonblocking(tp) && distrust(end, pod))
			reason = REASON_blocking;
		return reason;
	}
	if (is_loopback(&end->remote_address))
		return app_refusal(pod);
	netns = bpf_map_lookup_elem(&addresses, &end->remote_address);
	if (!netns)
		return REASON_remote;
	return *netns == end->netns ? app_refusal(pod) : REASON_none;
}

inline_ __u8 hop_of(const struct end *active, const struct end *passive)
{
	_Bool from_sidecar = active->role == ROLE_SIDECAR;
	_Bool to_sidecar = passive->role == ROLE_SIDECAR;

	if (active->netns != passive->netns)
		return from_sidecar && to_sidecar ? HOP_SIDECAR_SIDECAR : HOP_NONE;
	if (from_sidecar == to_sidecar)
		return HOP_NONE;
	return to_sidecar ? HOP_APP_SIDECAR : HOP_SIDECAR_APP;
}

/* Both ends, and so the hop, are known now: the reason to refuse, or none. */
inline_ __u8 pair_refusal(const struct connection *c)
{
	const struct end *active = &c->ends[ACTIVE];
	const struct end *passive = &c->ends[PASSIVE];
	struct pod *active_pod, *pod;
	__u8 reason;

	if (c->hop == HOP_NONE)
		return REASON_roles;
	active_pod = bpf_map_lookup_elem(&pods, &active->netns);
	pod = bpf_map_lookup_elem(&pods, &passive->netns);
	if (!active_pod || !pod)
		return REASON_withdrawn;
	reason = learnt(passive, PASSIVE, pod);
	if (!reason && c->hop == HOP_SIDECAR_APP)
		reason = app_refusal(pod);
	if (!reason && against_reading(active, active_pod))
		reason = against_reading(passive, pod);	/* neither way: leave it alone */
	return reason;
}

/* An app's end that nothing was redirected to, and that so may still leave. */
inline_ _Bool may_leave_later(const struct connection *c, const struct end *end)
{
	return c->verdict == VERDICT_ACCEPTED && end->role == ROLE_APP;
}

inline_ _Bool must_leave(struct connection *c, const struct socket_state *state)
{
	if (c->verdict != VERDICT_ACCEPTED)
		return 1;
	return state->leave && !direction_of(c, !state->key.end)->messages_redirected;
}

/*
 * From the one queue only while that is empty, or its bytes are lost, and with nobody
 * asleep in recv(), who would get EAGAIN (tcp_bpf_recvmsg_parser()).
 */
inline_ _Bool can_leave(struct tcp_sock *tp, const struct end *end)
{
	if (!(end->state & END_ONE_QUEUE))
		return 1;
	return psock_is_empty(end) && !psock_backlog(end) &&
	       (is_nonblocking(tp) || !is_awaited(tp));
}

/*
 * Redirected traffic shows conntrack no packet, and an expired NAT entry would break
 * the FIN.  A keepalive probe each half hour is below any sane timeout (Kubernetes
 * sets 24 h, the kernel's default is 5 days).  An option the proxy set stays.
 */
inline_ void keep_alive(struct bpf_sock_ops *ctx, struct tcp_sock *tp)
{
	int on = 1, idle_seconds = 1800;

	if (has_flag(tp, bpf_core_enum_value(enum sock_flags, SOCK_KEEPOPEN)))
		return;
	bpf_setsockopt(ctx, SOL_TCP, TCP_KEEPIDLE, &idle_seconds, sizeof(idle_seconds));
	bpf_setsockopt(ctx, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
}

#endif
