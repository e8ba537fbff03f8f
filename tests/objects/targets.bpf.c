/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* Programs that are verified against something: functions of the kernel and of others. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#define noinline __attribute__((noinline))

noinline int replaceable(struct __sk_buff *skb)
{
	return skb->len > 5;
}

SEC("tc")
int main_program(struct __sk_buff *skb)
{
	return replaceable(skb);
}

SEC("?freplace/replaceable")
int replacement(struct __sk_buff *skb)
{
	return 7;
}

SEC("?fentry/replaceable")
int watcher(void *ctx)
{
	return 0;
}

SEC("?freplace/no_such_function")
int wrong_replacement(struct __sk_buff *skb)
{
	return 7;
}

SEC("fentry/bpf_fentry_test1")
int entry(void *ctx)
{
	return 0;
}

SEC("fexit/vmlinux:bpf_fentry_test1")
int leaving(void *ctx)
{
	return 0;
}

SEC("tp_btf/sched_switch")
int tracepoint(void *ctx)
{
	return 0;
}

SEC("iter/bpf_map")
int maps(void *ctx)
{
	return 0;
}

SEC("?fentry")
int aimless(void *ctx)
{
	return 0;
}

SEC("?fentry/no_such_module:bpf_fentry_test1")
int of_module(void *ctx)
{
	return 0;
}

SEC("?tp_btf/no_such_tracepoint")
int no_tracepoint(void *ctx)
{
	return 0;
}

SEC("?no_such_section")
int nameless(void *ctx)
{
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
