/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* refused: struct_ops are not supported */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("struct_ops/init")
int init(void *ctx)
{
	return 0;
}

struct ops {
	void *init;
};

SEC(".struct_ops")
struct ops ours = { .init = init };
