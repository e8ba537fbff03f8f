/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* Maps in the style of before libbpf 1.0. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct definition {
	__u32 type, key_size, value_size, max_entries, map_flags;
};

struct record {
	__u64 when;
	char name[16];
};

struct definition SEC("maps") first = { BPF_MAP_TYPE_HASH, 4, 24, 10, BPF_F_NO_PREALLOC };
struct definition SEC("maps") second = { BPF_MAP_TYPE_ARRAY, 4, 8, 2 };
static struct definition SEC("maps") hidden = { BPF_MAP_TYPE_ARRAY, 4, 4, 3 };

struct {
	__u32 type, key_size, value_size, max_entries;
} brief SEC("maps/short") = { BPF_MAP_TYPE_ARRAY, 4, 4, 4 };

/* As BPF_ANNOTATE_KV_PAIR(): what keys and values are. */
struct ____btf_map_first {
	__u32 key;
	struct record value;
} ____btf_map_first SEC(".maps.first");

/* Of other sizes: about something else. */
struct ____btf_map_second {
	__u64 key;
	__u64 value;
} ____btf_map_second SEC(".maps.second");

SEC("socket")
int use(void *ctx)
{
	__u32 key = 1;

	return !bpf_map_lookup_elem(&first, &key) + !bpf_map_lookup_elem(&second, &key) +
	       !bpf_map_lookup_elem(&hidden, &key) + !bpf_map_lookup_elem(&brief, &key);
}

char LICENSE[] SEC("license") = "GPL";
