/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* refused: variables of an arena, but no map is one */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

int shared SEC(".addr_space.1") = 7;

SEC("socket")
int use(void *ctx)
{
	return shared;
}
