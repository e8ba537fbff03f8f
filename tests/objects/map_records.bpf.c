/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* Maps without values of their own, given types to say what their records are. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct record {
	__u64 when;
	char name[16];
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, struct record);
} ring SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_USER_RINGBUF);
	__uint(max_entries, 4096);
	__uint(value_size, 24);
} user_ring SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERF_EVENT_ARRAY);
	__type(value, struct record);
} perf SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERF_EVENT_ARRAY);
	__type(key, int);
	__uint(value_size, sizeof(__u32));
} plain_perf SEC(".maps");

SEC("socket")
int use(void *ctx)
{
	return (long)&ring && (long)&user_ring && (long)&perf && (long)&plain_perf;
}

char LICENSE[] SEC("license") = "GPL";
