/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* refused: variables initialised with addresses */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

int there = 1;
int *here = &there;

SEC("socket")
int use(void *ctx)
{
	return *here;
}
