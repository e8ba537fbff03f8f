/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* refused: key_size is 8 and 4 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(key_size, 8);
	__type(key, __u32);
} torn SEC(".maps");

SEC("socket")
int use(void *ctx)
{
	return 0;
}
