/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* refused: section maps: maps in the style of before libbpf 1.0 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
	__u32 type, key_size, value_size, max_entries;
} old SEC("maps") = { BPF_MAP_TYPE_ARRAY, 4, 4, 1 };

SEC("socket")
int use(void *ctx)
{
	return (long)&old;
}
