/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* refused: tentative is in no section */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

__attribute__((common)) int tentative;

SEC("socket")
int use(void *ctx)
{
	return tentative;
}
