/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* refused: elsewhere is declared, but neither here nor as part of the kernel */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

extern int elsewhere;

SEC("socket")
int use(void *ctx)
{
	return elsewhere;
}
