/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/* Counters, events, and the life of a connection's record. */
#ifndef ACCEL_ACCOUNT_H
#define ACCEL_ACCOUNT_H

#include "maps.h"
#include "socket.h"

/* Atomic though per CPU: a program may be preempted, and run again, in between. */
inline_ void add(__u64 *counter, __u64 number)
{
	__sync_fetch_and_add(counter, number);
}

inline_ void count_reason(struct reasons *reasons, __u64 reason)
{
	/* Keeps the check and the index in one register, where the verifier sees both. */
	barrier_var(reason);
	if (reason < REASON_COUNT)
		add(&((__u64 *)reasons)[reason], 1);
}

inline_ struct verdicts *my_verdicts(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&verdicts, &zero);
}

inline_ void count_refused(__u8 reason)
{
	struct verdicts *mine = my_verdicts();

	if (mine)
		count_reason(&mine->refused, reason);
}

inline_ struct traffic *my_traffic(const struct connection *c, __u32 end)
{
	__u32 index = c->hop * ENDS + end;

	return bpf_map_lookup_elem(&traffic, &index);
}

/* The verifier wants to see that an index stored in a map is in range. */
inline_ struct end *end_of(struct connection *c, __u32 which)
{
	return which == ACTIVE ? &c->ends[ACTIVE] : &c->ends[PASSIVE];
}

inline_ struct direction *direction_of(struct connection *c, __u32 which)
{
	return which == ACTIVE ? &c->directions[ACTIVE] : &c->directions[PASSIVE];
}

inline_ void count_redirected(struct connection *c, __u32 end, __u32 bytes)
{
	struct direction *d = direction_of(c, end);
	struct traffic *mine = my_traffic(c, end);

	d->messages_redirected += 1;
	d->bytes_redirected += bytes;
	d->queued_messages += 1;
	d->queued_bytes += bytes;
	d->reason = REASON_none;
	if (mine) {
		add(&mine->messages_redirected, 1);
		add(&mine->bytes_redirected, bytes);
	}
}

inline_ void count_tcp(struct connection *c, __u32 end, __u32 bytes, __u8 reason)
{
	struct direction *d = direction_of(c, end);
	struct traffic *mine = my_traffic(c, end);

	d->messages_tcp += 1;
	d->bytes_tcp += bytes;
	d->reason = reason;
	if (mine) {
		add(&mine->messages_tcp, 1);
		add(&mine->bytes_tcp, bytes);
		count_reason(&mine->messages_tcp_by_reason, reason);
	}
}

inline_ struct event *reserve_event(__u32 kind, const struct connection_key *key,
				    const struct connection *c)
{
	struct verdicts *mine;
	struct event *event;

	if (!events_wanted)
		return 0;
	event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
	if (!event) {
		mine = my_verdicts();
		if (mine)
			add(&mine->events_lost, 1);
		return 0;
	}
	event->at_ns = bpf_ktime_get_ns();
	event->kind = kind;
	event->_pad = 0;
	event->key = *key;
	event->connection = *c;
	return event;
}

inline_ void emit(__u32 kind, const struct connection_key *key, const struct connection *c)
{
	struct event *event = reserve_event(kind, key, c);

	if (event)
		bpf_ringbuf_submit(event, 0);
}

/* Writes a new connection down.  Returns its record, or null where there is none. */
inline_ struct connection *record_connection(const struct connection_key *key,
					     const struct connection *new)
{
	switch (bpf_map_update_elem(&connections, key, new, BPF_NOEXIST)) {
	case 0:
		return bpf_map_lookup_elem(&connections, key);
	case -EEXIST:
		count_refused(REASON_duplicate);
		return 0;
	default:
		count_refused(REASON_connections_full);
		return 0;
	}
}

/* Deletes a connection's record; the ends may do so at the same time. */
inline_ void forget(const struct connection_key *key, const struct connection *c)
{
	struct event *event = reserve_event(EVENT_CLOSED, key, c);
	long gone = bpf_map_delete_elem(&connections, key);

	if (!event)
		return;
	if (gone == 0)
		bpf_ringbuf_submit(event, 0);
	else
		bpf_ringbuf_discard(event, 0);
}

inline_ void note_refusal(const struct connection_key *key, const struct connection *c)
{
	count_refused(c->reason);
	emit(EVENT_REFUSED, key, c);
}

inline_ void refuse(const struct connection_key *key, struct connection *c, __u8 reason)
{
	c->reason = reason;
	c->verdict = VERDICT_REFUSED;
	note_refusal(key, c);
}

inline_ void accept(const struct connection_key *key, struct connection *c)
{
	struct verdicts *mine = my_verdicts();

	barrier();	/* the rest of the record is in place before the verdict is */
	c->verdict = VERDICT_ACCEPTED;
	if (mine)
		add(&mine->accepted, 1);
	emit(EVENT_ACCEPTED, key, c);
}

inline_ void note_eviction(const struct connection_key *key, struct connection *c)
{
	struct verdicts *mine = my_verdicts();

	if (mine)
		add(&mine->evicted, 1);
	if (c->verdict == VERDICT_PENDING)
		refuse(key, c, REASON_no_peer);
	else
		emit(EVENT_EVICTED, key, c);
}

inline_ void look_at(const struct end *end, struct live_end *live)
{
	if (!is_still(end))
		return;
	live->tcp_state = peer_sock(end, __sk_common.skc_state);
	live->queued_bytes = peer_sock(end, sk_backlog.rmem_alloc.counter);
}

#endif
