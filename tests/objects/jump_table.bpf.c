/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* Indirect jumps and their tables, as LLVM 21 and later make them of a switch. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

/* gotox r1; assemblers before LLVM 21 have no word for it. */
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define GOTOX_R1 ".byte 0x0d, 0x01, 0, 0, 0, 0, 0, 0;"
#else
#define GOTOX_R1 ".byte 0x0d, 0x10, 0, 0, 0, 0, 0, 0;"
#endif

/* For 0 in *r1 the first number, else the second; `section` is where the code is. */
#define CHOOSE(table, section, first, second)                                                      \
	asm volatile(".pushsection .jumptables,\"\",@progbits;"                                    \
		     ".global " table ";"                                                          \
		     ".type " table ", @object;" table ":"                                         \
		     ".quad first_%= - " section ";"                                               \
		     ".quad second_%= - " section ";"                                              \
		     ".size " table ", 16;"                                                        \
		     ".popsection;"                                                                \
		     "r2 = *(u32 *)(r1 + 0);"                                                      \
		     "if r2 == 0 goto +1;"                                                         \
		     "r2 = 1;"                                                                     \
		     "r2 <<= 3;"                                                                   \
		     "r1 = " table " ll;"                                                          \
		     "r1 += r2;"                                                                   \
		     "r1 = *(u64 *)(r1 + 0);" GOTOX_R1 "first_%=:"                                 \
		     "r0 = " first ";"                                                             \
		     "exit;"                                                                       \
		     "second_%=:"                                                                  \
		     "r0 = " second ";"                                                            \
		     "exit;" ::                                                                    \
			     : "memory")

static __attribute__((noinline)) int before(void)
{
	int one = 1;

	asm volatile("" : "+r"(one));
	return one;
}

static __attribute__((noinline, naked)) int choose(int *which)
{
	CHOOSE("BPF.JT.0.0", ".text", "30", "40");
}

/* Before the other, so that its slots do not count from the section's start. */
SEC("syscall")
int call(int *ctx)
{
	int which = *ctx;

	return choose(&which) + before();
}

SEC("syscall")
__attribute__((naked)) int jump(int *ctx)
{
	CHOOSE("BPF.JT.1.0", "syscall", "10", "20");
}

char _license[] SEC("license") = "GPL";
