/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * Static functions beside the programs of a section, called and not; a program of a name
 * nobody knows; a function that the kernel calls when a program throws.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#define NOINLINE __attribute__((noinline))

int total;

NOINLINE int last(int x)
{
	return x + total;
}

NOINLINE int first(int x)
{
	return last(x) * 3;
}

NOINLINE int thrown(unsigned long cookie)
{
	return first(cookie);
}

SEC("socket")
static NOINLINE int beside(int x)
{
	return x * total;
}

SEC("socket") __attribute__((used))
static int idle(void *ctx)
{
	return 0;
}

SEC("socket") __attribute__((btf_decl_tag("exception_callback:thrown")))
int entry(struct __sk_buff *ctx)
{
	return beside(ctx->len) + last(2);
}

SEC("teapot/short")
int unknown(struct __sk_buff *ctx)
{
	return first(1) + last(2) + beside(3);
}
