/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * Functions that call each other: static and global ones in .text, one shared by
 * two programs, one between programs of a section, one only its address is taken
 * of, and one that nobody needs.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} numbers SEC(".maps");

struct sock {
	int sk_rcvbuf;
} __attribute__((preserve_access_index));

int side;

__attribute__((noinline)) int unused(int x)
{
	return x * 3;
}

static __attribute__((noinline)) int leaf(volatile struct sock *sk)
{
	return side + (sk ? sk->sk_rcvbuf : 0);
}

__attribute__((noinline)) int shared(int x)
{
	return leaf((void *)(long)x) + x;
}

__attribute__((noinline, visibility("hidden"))) int hidden(int x)
{
	return shared(x) ^ side;
}

static long visit(void *map, const __u32 *key, __u64 *value, void *ctx)
{
	side += *value;
	return 0;
}

SEC("sockops")
int first(struct bpf_sock_ops *ctx)
{
	bpf_for_each_map_elem(&numbers, visit, 0, 0);
	return hidden(ctx->op);
}

SEC("sockops")
int second(struct bpf_sock_ops *ctx)
{
	return shared(ctx->op) + 1;
}

SEC("sk_msg")
int alone(struct sk_msg_md *ctx)
{
	return SK_PASS;
}

char LICENSE[] SEC("license") = "GPL";
