/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/* Socket options that an enrolled socket cannot bear, and everybody else's let alone. */
#ifndef ACCEL_GUARD_H
#define ACCEL_GUARD_H

#include "maps.h"
#include "account.h"
#include "verdict.h"

inline_ _Bool asks_for(const struct bpf_sockopt *ctx, int level, int option)
{
	return ctx->level == level && ctx->optname == option;
}

/*
 * The reason why an enrolled socket cannot have this option, or none.
 *
 * TCP_ULP: kTLS and the sockhash both take the socket's send and receive over; where
 * kernels let them (before 6.1.189 and 6.12.111) they mix plaintext and ciphertext.
 *
 * SO_ZEROCOPY: by TCP, too, an enrolled socket copies what it sends.  It then completes
 * never (before 6.5), or once for each piece of a message (6.18), not for each send().
 */
inline_ __u8 harm_of(struct bpf_sockopt *ctx)
{
	int *value = ctx->optval;

	if (asks_for(ctx, SOL_TCP, TCP_ULP))
		return REASON_upper_layer;
	if (!asks_for(ctx, SOL_SOCKET, SO_ZEROCOPY))
		return REASON_none;
	return (void *)(value + 1) <= ctx->optval_end && *value == 1 ? REASON_zero_copy
								      : REASON_none;
}

/*
 * Is it enrolled?  Then the option is refused: whoever uses either knows how to do
 * without, as kernels may lack them.  Its next socket is kept out, and may have it.
 */
inline_ _Bool refuses(struct bpf_sock *sk, __u8 reason)
{
	struct socket_state *state;
	struct verdicts *mine = my_verdicts();
	struct connection *c;
	struct end *end;

	if (!sk)
		return 0;
	state = bpf_sk_storage_get(&socket_states, sk, 0, 0);
	if (!state)
		return 0;
	c = bpf_map_lookup_elem(&connections, &state->key.connection);
	if (!c)
		return 0;
	end = end_of(c, state->key.end);
	if (!(end->state & END_ENROLLED) || end->state & END_LEFT)
		return 0;
	keep_out(end, state->key.end, reason);
	if (mine)
		add(&mine->options_refused, 1);
	return 1;
}

/*
 * The kernel gives the option's handler its copy of the value, not the caller's memory.
 * Three kinds must get the latter, which a length of 0 says:
 *
 * - what is larger than the copy, a page: EFAULT otherwise, up to 6.4 (29ebbba7d461,
 *   "bpf: Don't EFAULT for {g,s}etsockopt with wrong optlen");
 * - netfilter's tables: bpfilter (5.10 to 6.7) takes them from the caller only, and the
 *   others read past the end of too small a copy (CVE-2024-35896);
 * - kTLS's keys, of sockets that are not enrolled: out of a copy, the kernel warns (7.2.13:
 *   "memcpy: detected field-spanning write" in tls_setsockopt()).
 *
 * For all others nothing is set, as another program may have changed the copy.
 */
inline_ void hand_back(struct bpf_sockopt *ctx)
{
	long room = ctx->optval_end - ctx->optval;
	_Bool is_callers = (ctx->level == SOL_IP && ctx->optname >= NETFILTER_OPTIONS) ||
			   asks_for(ctx, SOL_IPV6, NETFILTER_OPTIONS) ||
			   asks_for(ctx, SOL_IPV6, NETFILTER_OPTIONS + 1) ||
			   ctx->level == SOL_TLS;

	if (ctx->optlen > room || (is_callers && ctx->optlen > 0))
		ctx->optlen = 0;
}

#endif
