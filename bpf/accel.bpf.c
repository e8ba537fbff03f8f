// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only)
/*
 * The short cut between two sockets on one node.
 *
 *   accel_sockops   cgroup hook: pairs the two ends of a connection by their sequence
 *                   numbers, decides whether it may be accelerated, enrols its sockets
 *   accel_redirect  sk_msg hook on the sockhash: hands each message to the peer socket
 *                   or leaves it to TCP
 *   accel_pass      sk_skb hook on the sockhash of one queue: changes nothing, but makes
 *                   the kernel queue TCP's bytes with the redirected ones
 *   accel_guard     setsockopt hook of that cgroup: refuses what does not go with being enrolled
 *   accel_look      run by hand: records of connections, and what their sockets do now
 *
 * Fail open: every way out that is not a redirect leaves the message to TCP.
 */
#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>

#include "accel.h"
#include "kernel.h"
#include "maps.h"
#include "socket.h"
#include "account.h"
#include "verdict.h"
#include "message.h"
#include "guard.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/*
 * From now on `ctx`'s socket is this end of that connection.  False: no memory, as where
 * an application used up what net.core.optmem_max grants the socket.
 */
inline_ _Bool remember(struct bpf_sock_ops *ctx, const struct socket_key *key)
{
	struct socket_state fresh = { .key = *key };
	struct bpf_sock *sk = ctx->sk;

	if (!sk || !bpf_sk_storage_get(&socket_states, sk, &fresh, BPF_SK_STORAGE_GET_F_CREATE))
		return 0;
	bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
	return 1;
}

/* What remember() wrote down of this socket, or null. */
inline_ struct socket_state *recall(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;

	return sk ? bpf_sk_storage_get(&socket_states, sk, 0, 0) : 0;
}

inline_ struct tcp_sock *tcp_sock_of(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;

	return sk ? bpf_skc_to_tcp_sock(sk) : 0;
}

/* Writes a new connection and its first end down.  Null where there is no room. */
inline_ struct connection *record(struct bpf_sock_ops *ctx, const struct socket_key *key,
				  const struct connection *new)
{
	struct connection *c = record_connection(&key->connection, new);

	if (c && !remember(ctx, key)) {
		bpf_map_delete_elem(&connections, &key->connection);
		count_refused(REASON_no_storage);
		return 0;
	}
	return c;
}

/* BPF_NOEXIST: a forged key never displaces the socket it was copied from. */
inline_ long insert(struct bpf_sock_ops *ctx, struct socket_key *key, const struct end *end)
{
	if (end->state & END_ONE_QUEUE)
		return bpf_sock_hash_update(ctx, &one_queue_sockets, key, BPF_NOEXIST);
	return bpf_sock_hash_update(ctx, &sockets, key, BPF_NOEXIST);
}

/* Takes the socket out of whichever sockhash it is in. */
inline_ void take_out(const struct socket_key *key)
{
	bpf_map_delete_elem(&sockets, key);
	bpf_map_delete_elem(&one_queue_sockets, key);
}

/* SK_DROP means "no such socket" here: leave the message to TCP. */
inline_ long redirect_to(struct sk_msg_md *msg, struct socket_key *peer, const struct end *end)
{
	if (end->state & END_ONE_QUEUE)
		return bpf_msg_redirect_hash(msg, &one_queue_sockets, peer, BPF_F_INGRESS);
	return bpf_msg_redirect_hash(msg, &sockets, peer, BPF_F_INGRESS);
}

inline_ void want_rtt(struct bpf_sock_ops *ctx)
{
	bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_RTT_CB_FLAG);
}

/* Puts the socket into the sockhash.  Returns the reason why not, or none. */
inline_ __u8 enrol(struct bpf_sock_ops *ctx, struct tcp_sock *tp, struct socket_key *key,
		   struct end *end)
{
	switch (insert(ctx, key, end)) {
	case 0:
		break;
	case -E2BIG:
		return REASON_sockets_full;
	case -EBUSY:
		return REASON_socket_taken;
	case -EEXIST:
		return REASON_duplicate;
	default:
		return REASON_enrol_failed;
	}
	end->state |= END_ENROLLED;
	want_rtt(ctx);
	if (end->role == ROLE_SIDECAR)
		keep_alive(ctx, tp);
	return REASON_none;
}

inline_ void active_established(struct bpf_sock_ops *ctx, struct tcp_sock *tp,
				struct connection *new, const struct pod *pod)
{
	struct socket_key key = {
		.connection = { .active_seq = tp->snd_nxt, .passive_seq = tp->rcv_nxt },
		.end = ACTIVE,
	};
	struct connection *c;
	__u8 reason;

	new->reason = unfit(ctx, tp);
	if (!new->reason)
		new->reason = active_refusal(tp, &new->ends[ACTIVE], pod);
	new->verdict = new->reason ? VERDICT_REFUSED : VERDICT_PENDING;
	new->directions[ACTIVE].clear_at = tp->snd_nxt;

	c = record(ctx, &key, new);
	if (!c)
		return;
	if (new->verdict == VERDICT_REFUSED) {
		note_refusal(&key.connection, c);
		return;
	}
	reason = enrol(ctx, tp, &key, &c->ends[ACTIVE]);
	if (reason)
		refuse(&key.connection, c, reason);
}

inline_ void passive_established(struct bpf_sock_ops *ctx, struct tcp_sock *tp,
				 struct connection *new)
{
	struct socket_key key = {
		.connection = { .active_seq = tp->rcv_nxt, .passive_seq = tp->snd_nxt },
		.end = PASSIVE,
	};
	struct connection *c = bpf_map_lookup_elem(&connections, &key.connection);
	__u8 reason;

	if (!c) {
		new->reason = unfit(ctx, tp);
		if (!new->reason)
			new->reason = REASON_no_peer;
		new->verdict = VERDICT_REFUSED;
		c = record(ctx, &key, new);
		if (c)
			note_refusal(&key.connection, c);
		return;
	}
	if (c->ends[PASSIVE].sock) {
		count_refused(REASON_duplicate);
		return;
	}
	if (!remember(ctx, &key)) {
		/* Not written down: nobody would tell us that this end closed. */
		if (c->verdict != VERDICT_REFUSED)
			refuse(&key.connection, c, REASON_no_storage);
		return;
	}
	c->ends[PASSIVE] = new->ends[PASSIVE];
	c->directions[PASSIVE].clear_at = tp->snd_nxt;
	c->hop = hop_of(&c->ends[ACTIVE], &c->ends[PASSIVE]);
	if (c->verdict == VERDICT_REFUSED)
		return;

	reason = unfit(ctx, tp);
	if (!reason)
		reason = pair_refusal(c);
	if (!reason)
		reason = enrol(ctx, tp, &key, &c->ends[PASSIVE]);
	if (!reason) {
		accept(&key.connection, c);
		return;
	}
	if (reason == REASON_blocking)	/* to learn from its first answer */
		want_rtt(ctx);
	refuse(&key.connection, c, reason);
}

inline_ void established(struct bpf_sock_ops *ctx, __u32 which)
{
	struct connection new = {};
	struct end *end = &new.ends[which];
	struct tcp_sock *tp = tcp_sock_of(ctx);
	struct pod *pod;

	if (!tp)
		return;
	end->netns = netns_of(tp);
	pod = bpf_map_lookup_elem(&pods, &end->netns);
	if (!pod)
		return;
	end->cgroup_id = cgroup_id_of(tp);
	end->uid = sock_of(tp)->sk_uid.val;
	end->role = role_of(end, pod);
	if (end->role == ROLE_EXCLUDED)
		return;
	if (one_queue && needs_one_queue(end, pod) && !distrust(end, pod))
		end->state = END_ONE_QUEUE;
	end->sock = (__u64)(unsigned long)tp;
	end->cookie = bpf_get_socket_cookie(ctx);
	read_addresses(ctx, end);
	new.established_ns = bpf_ktime_get_ns();

	if (which == ACTIVE)
		active_established(ctx, tp, &new, pod);
	else
		passive_established(ctx, tp, &new);
}

/*
 * connect() on a socket that was connected before (AF_UNSPEC in between): out with
 * the old key, or the new connection would read the old one's bytes.
 */
inline_ void connecting(struct bpf_sock_ops *ctx)
{
	struct socket_state *state = recall(ctx);
	struct bpf_sock *sk = ctx->sk;

	if (!state || !sk)
		return;
	take_out(&state->key);
	bpf_sk_storage_delete(&socket_states, sk);
}

inline_ void listening(struct bpf_sock_ops *ctx)
{
	__u32 presumed = REASON_blocking | PRESUMED;
	struct origin origin = {};
	struct tcp_sock *tp = tcp_sock_of(ctx);

	if (!tp)
		return;
	origin.cgroup_id = cgroup_id_of(tp);
	origin.netns = netns_of(tp);
	origin.port = ctx->local_port;
	if (is_nonblocking(tp))
		bpf_map_delete_elem(&kept_out, &origin);
	else
		bpf_map_update_elem(&kept_out, &origin, &presumed, BPF_ANY);
}

/* An ACK with an RTT sample: the time for whoever has no business here to leave. */
inline_ void acknowledged(struct bpf_sock_ops *ctx)
{
	struct socket_state *state = recall(ctx);
	struct tcp_sock *tp = tcp_sock_of(ctx);
	struct connection *c;
	struct end *end;

	if (!state || !tp)
		return;
	c = bpf_map_lookup_elem(&connections, &state->key.connection);
	if (!c)
		return;
	end = end_of(c, state->key.end);

	if (!(end->state & END_ENROLLED)) {
		learn(tp, end);
	} else if (must_leave(c, state)) {
		if (!can_leave(tp, end))
			return;		/* at a later sample */
		/* Nothing was ever redirected to it, so nothing is lost. */
		take_out(&state->key);
		end->state |= END_LEFT;
		note_eviction(&state->key.connection, c);
	} else if (may_leave_later(c, end)) {
		return;
	}
	bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags & ~BPF_SOCK_OPS_RTT_CB_FLAG);
}

/*
 * Our peer's FIN.  If it closed with bytes unread in one queue, no reset follows, and
 * while its window is shut nothing ever tells us: its TIME-WAIT socket answers our
 * probes with that window for a minute (tcp_timewait_state_process(), Linux 6.18).  It
 * takes no new byte any more (tcp_rcv_state_process() resets them), so give up at the
 * next probe.
 */
inline_ void peer_finished(struct bpf_sock_ops *ctx)
{
	struct socket_state *state = recall(ctx);
	const struct end *peer;
	struct connection *c;
	int milliseconds = 1;

	if (!state)
		return;
	c = bpf_map_lookup_elem(&connections, &state->key.connection);
	if (!c)
		return;
	peer = end_of(c, !state->key.end);
	if (peer->state & END_ONE_QUEUE && is_still(peer) &&
	    peer_sock(peer, sk_shutdown) == SHUTDOWN_MASK)
		bpf_setsockopt(ctx, SOL_TCP, TCP_USER_TIMEOUT, &milliseconds,
			       sizeof(milliseconds));
}

inline_ void closed(struct bpf_sock_ops *ctx)
{
	struct socket_state *state = recall(ctx);
	struct connection *c;

	if (!state)
		return;
	c = bpf_map_lookup_elem(&connections, &state->key.connection);
	if (!c)
		return;
	/* Atomic, so that of two ends closing at once at least one sees both closed. */
	__sync_fetch_and_add(&c->closed, 1);
	if (c->closed >= !!c->ends[ACTIVE].sock + !!c->ends[PASSIVE].sock)
		forget(&state->key.connection, c);
}

/* Always 1: 0 would void the replies of other sock_ops programs (tcp_call_bpf()). */
SEC("sockops")
int accel_sockops(struct bpf_sock_ops *ctx)
{
	switch (ctx->op) {
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
		connecting(ctx);
		break;
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
		established(ctx, ACTIVE);
		break;
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		established(ctx, PASSIVE);
		break;
	case BPF_SOCK_OPS_TCP_LISTEN_CB:
		listening(ctx);
		break;
	case BPF_SOCK_OPS_RTT_CB:
		acknowledged(ctx);
		break;
	case BPF_SOCK_OPS_STATE_CB:
		if (ctx->args[1] == TCP_CLOSE)
			closed(ctx);
		else if (ctx->args[1] == TCP_CLOSE_WAIT)
			peer_finished(ctx);
		break;
	}
	return 1;
}

/* 1 lets the kernel go on with the option, 0 is EPERM. */
SEC("cgroup/setsockopt")
int accel_guard(struct bpf_sockopt *ctx)
{
	__u8 reason = harm_of(ctx);

	if (reason && refuses(ctx->sk, reason))
		return 0;
	hand_back(ctx);
	return 1;
}

SEC("sk_msg")
int accel_redirect(struct sk_msg_md *msg)
{
	struct socket_state *state;
	struct socket_key peer;
	struct connection *c;
	struct tcp_sock *tp;
	__u8 reason;

	state = bpf_sk_storage_get(&socket_states, msg->sk, 0, 0);
	tp = bpf_skc_to_tcp_sock(msg->sk);
	if (!state || !tp)
		return SK_PASS;
	c = bpf_map_lookup_elem(&connections, &state->key.connection);
	if (!c)
		return SK_PASS;

	reason = tcp_reason(c, state, tp, msg->size);
	if (!reason || is_rest_of_redirected(msg)) {
		peer = state->key;
		peer.end = !peer.end;
		if (redirect_to(msg, &peer, end_of(c, peer.end)) == SK_PASS) {
			count_redirected(c, state->key.end, msg->size);
			return SK_PASS;
		}
		reason = REASON_peer_gone;
	}
	count_tcp(c, state->key.end, msg->size, reason);
	return SK_PASS;
}

/* By its mere presence TCP's bytes go into the queue that redirected ones are in. */
SEC("sk_skb/stream_verdict")
int accel_pass(struct __sk_buff *skb __attribute__((unused)))
{
	return SK_PASS;
}

/* One item of a packet of struct listings: its key is given, the rest is filled in. */
inline_ void fill_in(struct __sk_buff *packet, __u32 at)
{
	struct live_end live[ENDS] = {};
	struct connection_key key;
	struct connection *c;

	if (bpf_skb_load_bytes(packet, at + offsetof(struct listing, key), &key, sizeof(key)))
		return;
	c = bpf_map_lookup_elem(&connections, &key);
	if (!c)
		return;
	look_at(&c->ends[ACTIVE], &live[ACTIVE]);
	look_at(&c->ends[PASSIVE], &live[PASSIVE]);
	bpf_skb_store_bytes(packet, at + offsetof(struct listing, connection), c, sizeof(*c), 0);
	bpf_skb_store_bytes(packet, at + offsetof(struct listing, live), live, sizeof(live), 0);
}

/*
 * Attached to nothing: run by hand (BPF_PROG_TEST_RUN) on a packet of keys, see
 * struct listing.  An iterator over the map would do the same in one go, but there are
 * kernels that refuse to load those (EPERM, a hardened 6.18), while this runs on all.
 */
SEC("tc")
int accel_look(struct __sk_buff *packet)
{
	__u32 number;

	for (number = 0; number < LISTINGS_AT_ONCE; number++)
		fill_in(packet, LISTINGS_START + number * sizeof(struct listing));
	return 0;
}
