/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* refused: map quiet is static */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

static struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} quiet SEC(".maps");

SEC("socket")
int use(void *ctx)
{
	__u32 key = 0;

	return (long)bpf_map_lookup_elem(&quiet, &key);
}
