/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* A user ring buffer: records from user space, drained by a program. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_USER_RINGBUF);
	__uint(max_entries, 4096);
} orders SEC(".maps");

__u64 sum;

static long add(struct bpf_dynptr *record, void *context)
{
	__u64 number;

	if (bpf_dynptr_read(&number, sizeof(number), record, 0, 0))
		return 1;
	sum += number;
	return 0;
}

SEC("socket")
int drain(void *ctx)
{
	return bpf_user_ringbuf_drain(&orders, add, 0, 0);
}

char LICENSE[] SEC("license") = "GPL";
