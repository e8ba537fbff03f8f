/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* refused: bpf_task_acquire (kernel function) */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

extern void *bpf_task_acquire(void *task) __ksym;

SEC("socket")
int use(void *ctx)
{
	return (long)bpf_task_acquire(ctx);
}
