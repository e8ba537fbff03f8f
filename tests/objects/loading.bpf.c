/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * One of everything that tests/kernel/test_object.py loads for real: a sockhash
 * filled by sock_ops, sk_msg on it, an iterator over it, a ring buffer, a per-CPU
 * map, constants and variables, CO-RE accesses, and programs not loaded by
 * default, two of which are wrong in ways the verifier must explain.
 */

#include <linux/bpf.h>

#define SEC(name) __attribute__((section(name), used))
#define __uint(name, value) int(*name)[value]
#define __type(name, value) typeof(value) *name
#define CORE __attribute__((preserve_access_index))

typedef unsigned int u32;
typedef unsigned long long u64;

static void *(*bpf_map_lookup_elem)(void *, const void *) = (void *)1;
static long (*bpf_sock_hash_update)(void *, void *, void *, u64) = (void *)70;
static long (*bpf_seq_write)(void *, const void *, u32) = (void *)127;
static long (*bpf_ringbuf_output)(void *, void *, u64, u64) = (void *)130;
static struct sock *(*bpf_skc_to_tcp_sock)(void *) = (void *)137;

struct key {
	u32 port;
	u32 limit;
};

struct {
	__uint(type, BPF_MAP_TYPE_SOCKHASH);
	__uint(max_entries, 64);
	__type(key, struct key);
	__type(value, u64);
} sockets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, u64);
} inserted SEC(".maps");

const volatile u32 limit = 7;
volatile u64 seen;
volatile u32 answer = 42;

struct sock {
	int sk_rcvbuf;
} CORE;

/* No kernel has this field. */
struct sock___future {
	int sk_wishes;
} CORE;

SEC("sockops")
int track(struct bpf_sock_ops *ctx)
{
	struct key key = { ctx->local_port, limit };
	u32 zero = 0;
	u64 *count;

	__sync_fetch_and_add(&seen, 1);
	if (ctx->op != BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB &&
	    ctx->op != BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB)
		return 1;
	count = bpf_map_lookup_elem(&inserted, &zero);
	if (count)
		*count += 1;
	bpf_sock_hash_update(ctx, &sockets, &key, BPF_NOEXIST);
	bpf_ringbuf_output(&events, &key, sizeof(key), 0);
	return 1;
}

SEC("sk_msg")
int pass(struct sk_msg_md *msg)
{
	struct sock *sk = msg->sk ? bpf_skc_to_tcp_sock(msg->sk) : 0;

	if (sk)
		answer = sk->sk_rcvbuf;
	return SK_PASS;
}

struct seq_file;

struct bpf_iter_meta {
	struct seq_file *seq;
} CORE;

struct bpf_iter__sockmap {
	struct bpf_iter_meta *meta;
	void *key;
} CORE;

/* Not of itself: there are kernels that load no iterator over the elements of a map. */
SEC("?iter/sockmap")
int list(struct bpf_iter__sockmap *ctx)
{
	struct key *key = ctx->key;
	struct key copy;

	if (!key)
		return 0;
	copy = *key;
	bpf_seq_write(ctx->meta->seq, &copy, sizeof(copy));
	return 0;
}

SEC("?sk_msg")
int wishes(struct sk_msg_md *msg)
{
	struct sock *sk = msg->sk ? bpf_skc_to_tcp_sock(msg->sk) : 0;

	if (sk)
		answer = ((struct sock___future *)sk)->sk_wishes;
	return SK_PASS;
}

SEC("?sk_msg")
int careless(struct sk_msg_md *msg)
{
	u32 key = msg->size;

	return *(u32 *)bpf_map_lookup_elem(&inserted, &key);
}

SEC("?iter/no_such_thing")
int nowhere(void *ctx)
{
	return 0;
}

char _license[] SEC("license") = "Dual BSD/GPL";
