/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* refused: CONFIG_HZ (kernel configuration) */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

extern int CONFIG_HZ __kconfig;

SEC("socket")
int use(void *ctx)
{
	return CONFIG_HZ;
}
