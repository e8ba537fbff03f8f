/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* Variables that hold addresses, which no loader fills in, and one in an arena. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, 33); /* BPF_MAP_TYPE_ARENA */
	__uint(map_flags, 1 << 10); /* BPF_F_MMAPABLE */
	__uint(max_entries, 10);
} arena SEC(".maps");

int before SEC(".addr_space.1") = 3;
int shared SEC(".addr_space.1") = 7;

int there = 1;
int *here = &there;
static const char *const names[] = { "one", "two" };
__u32 which;

SEC("socket")
int use(void *ctx)
{
	const char *name = names[which & 1];

	return *here + shared + (name ? 1 : 0);
}
