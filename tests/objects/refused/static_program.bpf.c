/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* refused: static and never called: alone */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("socket")
static __attribute__((used)) int alone(void *ctx)
{
	return 0;
}
