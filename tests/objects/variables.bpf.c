/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* Variables in every kind of section, and those that are nobody else's business. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct pair {
	__u32 left;
	__u16 right;
};

__u64 zeroed;
__u32 first = 11;
volatile struct pair pair = { 1, 2 };
const volatile __u32 constant = 7;
const volatile char text[8] = "accel";
__u32 apart SEC(".data.apart") = 5;
static volatile __u32 private_counter;
__u32 hidden_counter __attribute__((visibility("hidden"))) = 3;

SEC("sockops")
int count(void *ctx)
{
	zeroed += first + constant + text[0] + apart + pair.right;
	hidden_counter++;
	return private_counter++;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
