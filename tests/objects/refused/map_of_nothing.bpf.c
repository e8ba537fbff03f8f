/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* refused: has no type */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(max_entries, 1);
} typeless SEC(".maps");

SEC("socket")
int use(void *ctx)
{
	return 0;
}
