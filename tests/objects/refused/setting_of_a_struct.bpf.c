/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* refused: Kconfig has no values of type struct pair */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct pair {
	int left, right;
};

extern struct pair CONFIG_PAIR __kconfig;

SEC("socket")
int use(void *ctx)
{
	return CONFIG_PAIR.left;
}
