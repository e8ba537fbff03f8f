/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* refused: bpf_prog_active (kernel symbol) */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

extern const int bpf_prog_active __ksym;

SEC("socket")
int use(void *ctx)
{
	return (long)&bpf_prog_active;
}
