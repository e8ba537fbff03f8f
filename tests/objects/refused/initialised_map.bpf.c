/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* refused: is initialised */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

int one[1] = { 1 };

struct {
	int (*type)[BPF_MAP_TYPE_ARRAY];
	int (*max_entries)[1];
} eager SEC(".maps") = { .max_entries = (void *)1 };

SEC("socket")
int use(void *ctx)
{
	return 0;
}
