/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* refused: unknown attribute 'colour' */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(colour, 1);
} painted SEC(".maps");

SEC("socket")
int use(void *ctx)
{
	return 0;
}
