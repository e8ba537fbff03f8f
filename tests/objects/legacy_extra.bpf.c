/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* Legacy maps of several loaders, each with more fields than the shared five. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct samples {
	__u32 type, key_size, value_size, max_entries, map_flags, inner_map_idx, numa_node;
};

struct iproute2 {
	__u32 type, size_key, size_value, max_elem, flags, id, pinning, inner_id, inner_idx;
};

struct gobpf {
	__u32 type, key_size, value_size, max_entries, map_flags, pinning;
	char namespace[256];
};

struct samples SEC("maps") template = { BPF_MAP_TYPE_HASH, 4, 8, 10 };
struct samples SEC("maps") outer = { BPF_MAP_TYPE_ARRAY_OF_MAPS, 4, 4, 2, .inner_map_idx = 0 };
struct samples SEC("maps") node = {
	BPF_MAP_TYPE_HASH, 4, 4, 2, BPF_F_NUMA_NODE, .numa_node = 0,
};

struct iproute2 SEC("maps/iproute2") tail = {
	BPF_MAP_TYPE_PROG_ARRAY, 4, 4, 3, .id = 1, .pinning = 2, .inner_idx = -1,
};
struct iproute2 SEC("maps/iproute2") nested = {
	BPF_MAP_TYPE_HASH_OF_MAPS, 4, 4, 3, .id = 2, .inner_id = 7, .inner_idx = -1,
};
struct iproute2 SEC("maps/iproute2") inside = {
	BPF_MAP_TYPE_ARRAY, 4, 16, 3, .id = 7, .inner_idx = -1,
};

struct gobpf SEC("maps/gobpf") pinned = {
	BPF_MAP_TYPE_PERF_EVENT_ARRAY, 4, 4, 0, 0, 1, "globals",
};

SEC("socket")
int use(void *ctx)
{
	return (long)&template && (long)&node && (long)&tail && (long)&pinned;
}

char LICENSE[] SEC("license") = "GPL";
