/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * CO-RE relocations of every kind against the running kernel.  Meant to be opened
 * and relocated: no program type may do what this one does, so no verifier takes it.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

#define CORE __attribute__((preserve_access_index))

struct in6_addr {
	union {
		__u32 u6_addr32[4];
	} in6_u;
} CORE;

struct sock_common {
	__u32 skc_daddr;
	struct in6_addr skc_v6_daddr;
} CORE;

struct sock {
	struct sock_common __sk_common;
	int sk_rcvbuf;
	__u8 sk_kern_sock : 1;
	__u16 sk_protocol;
} CORE;

struct tcp_sock {
	__u32 write_seq;
	__u32 copied_seq;
} CORE;

struct sk_buff {
	__u32 len;
	__u8 pkt_type : 3;
} CORE;

struct linux_dirent64 {
	char d_name[0];
} CORE;

struct task_struct {
	char comm[16];
	int pid;
	struct task_struct *real_parent;
} CORE;

/* A field and types that no kernel has. */
struct sock___future {
	int sk_wishes;
} CORE;

struct never_was {
	int x;
} CORE;

/* Smaller than the kernel's, and unsigned on both sides. */
struct tcp_sock___narrow {
	__u64 copied_seq;
} CORE;

/* sk_rcvbuf is an int: a wider load would read it wrong. */
struct sock___wide {
	long sk_rcvbuf;
} CORE;

enum bpf_map_type___local {
	BPF_MAP_TYPE_HASH___local = 77,
	BPF_MAP_TYPE_WISHES = 78,
};

typedef int (*callback_of_nobody)(int);

volatile __u64 out;

SEC("socket")
int fields(void *ctx)
{
	struct sock *sk = ctx;
	struct tcp_sock *tp = ctx;
	struct task_struct *task = ctx;
	struct linux_dirent64 *entry = ctx;
	struct tcp_sock___narrow *narrow = ctx;

	out = tp->copied_seq;
	out = tp->write_seq;
	out = sk->__sk_common.skc_v6_daddr.in6_u.u6_addr32[2];
	out = sk->__sk_common.skc_daddr;
	out = sk->sk_protocol;
	sk->sk_rcvbuf = 5;
	sk->sk_rcvbuf = out;
	out = task->comm[3];
	out = (__u64)&task[1].pid;
	out = (__u64)task->real_parent;
	out = (__u64)&entry->d_name[9];
	out = narrow->copied_seq;
	return 0;
}

SEC("socket")
int questions(void *ctx)
{
	struct sock *sk = ctx;
	struct sk_buff *skb = ctx;

	out = bpf_core_field_exists(sk->sk_rcvbuf);
	out = bpf_core_field_exists(((struct sock___future *)ctx)->sk_wishes);
	out = bpf_core_field_size(sk->__sk_common);
	out = __builtin_preserve_field_info(sk->sk_rcvbuf, BPF_FIELD_SIGNED);
	out = __builtin_preserve_field_info(sk->sk_protocol, BPF_FIELD_SIGNED);
	out = BPF_CORE_READ_BITFIELD(sk, sk_kern_sock);
	out = BPF_CORE_READ_BITFIELD(skb, pkt_type);
	out = bpf_core_type_id_local(struct sock);
	out = bpf_core_type_id_kernel(struct sock);
	out = bpf_core_type_id_kernel(struct never_was);
	out = bpf_core_type_exists(struct tcp_sock);
	out = bpf_core_type_exists(struct never_was);
	out = bpf_core_type_size(struct tcp_sock);
	out = bpf_core_type_size(struct never_was);
	out = bpf_core_enum_value_exists(enum bpf_map_type___local, BPF_MAP_TYPE_HASH___local);
	out = bpf_core_enum_value_exists(enum bpf_map_type___local, BPF_MAP_TYPE_WISHES);
	out = bpf_core_enum_value(enum bpf_map_type___local, BPF_MAP_TYPE_HASH___local);
	return 0;
}

SEC("socket")
int impossible(void *ctx)
{
	out = ((struct sock___future *)ctx)->sk_wishes;
	out = ((struct sock___wide *)ctx)->sk_rcvbuf;
	out = ((struct never_was *)ctx)->x;
	out = bpf_core_enum_value(enum bpf_map_type___local, BPF_MAP_TYPE_WISHES);
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
