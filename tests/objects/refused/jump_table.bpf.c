/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* refused: slot 1 leads to byte 0xc, where no instruction starts */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

__u64 table[2] SEC(".jumptables") = { 8, 12 };

SEC("socket")
int use(void *ctx)
{
	return table[0];
}
