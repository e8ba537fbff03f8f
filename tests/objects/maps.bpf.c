/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* Every attribute a map definition can have. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct value {
	__u64 count;
	char name[16];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 100);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct value);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} typed SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(key_size, 12);
	__uint(value_size, 20);
	__uint(max_entries, 3);
	__uint(map_flags, BPF_F_NUMA_NODE);
	__uint(numa_node, 1);
} sized SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_BLOOM_FILTER);
	__uint(max_entries, 10);
	__type(value, __u32);
	__uint(map_extra, 5);
} filter SEC(".maps");

/* libbpf's __ulong(), which Debian 12's header does not have yet. */
struct {
	__uint(type, BPF_MAP_TYPE_BLOOM_FILTER);
	__uint(max_entries, 10);
	__type(value, __u32);
	enum { wide_extra = 0x1234567890ULL } map_extra;
} wide SEC(".maps");

struct inner {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, __u64);
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH_OF_MAPS);
	__uint(max_entries, 8);
	__type(key, __u32);
	__array(values, struct inner);
} outer SEC(".maps");

/* The value only names the records. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
	__type(value, struct value);
} events SEC(".maps");

SEC("?sk_msg")
int look(void *ctx)
{
	__u32 key = 0;

	bpf_map_lookup_elem(&sized, &key);
	return bpf_map_lookup_elem(&typed, &key) != 0;
}

char LICENSE[] SEC("license") = "GPL";
