/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* refused: SEC('teapot/short') names no program type */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("teapot/short")
int use(void *ctx)
{
	return 0;
}
