/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* Tables of kernel callbacks in all four sections. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct sock;

/* Few of the kernel's members, and in another order. */
struct tcp_congestion_ops___ours {
	char name[16];
	void (*set_state)(struct sock *sk, __u8 new_state);
	__u32 (*ssthresh)(struct sock *sk);
	__u32 (*undo_cwnd)(struct sock *sk);
	void (*cong_avoid)(struct sock *sk, __u32 ack, __u32 acked);
	__u32 of_no_kernel; /* harmless while it is 0 */
};

SEC("struct_ops/threshold")
__u32 threshold(__u64 *ctx)
{
	return 2;
}

SEC("struct_ops")
__u32 undo(__u64 *ctx)
{
	return 10;
}

SEC("struct_ops")
void avoid(__u64 *ctx)
{
}

#define TABLE(section, variable)                               \
	SEC(section)                                           \
	struct tcp_congestion_ops___ours variable = {          \
		.name = #variable,                             \
		.ssthresh = (void *)threshold,                 \
		.undo_cwnd = (void *)undo,                     \
		.cong_avoid = (void *)avoid,                   \
	}

TABLE(".struct_ops", plain);
TABLE(".struct_ops.link", linked);
TABLE("?.struct_ops", optional);
TABLE("?.struct_ops.link", optional_link);

char LICENSE[] SEC("license") = "GPL";
