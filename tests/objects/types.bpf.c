/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* Types of every kind BTF knows, each that of a variable of its name. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct flat {
	__u8 a;
	__s16 b;
	__u32 c;
	__s64 d;
};

struct padded {
	__u8 kind;
	__u8 _pad[7];
	__u64 value;
	__u32 _pad2;
	__u32 end;
};

union either {
	__u32 number;
	char text[6];
};

enum colour { RED, GREEN = 5 };
enum negative { MINUS = -1, PLUS = 1 };

struct nested {
	struct flat flat[2];
	union either either;
	enum colour colour;
	_Bool yes;
	char name[5];
	__u8 address[4];
	__u16 grid[2][3];
	void *pointer;
	const volatile __u32 qualified;
	struct {
		__u32 x;
		__u32 y;
	};
	union {
		__u32 either_word;
		__u16 either_half;
	};
	__u32 class;
};

struct bits {
	__u32 low : 3;
	__s32 middle : 7;
	__u32 high : 22;
	__u16 after;
	__u64 far : 40;
};

typedef struct flat flat_t;

struct flat flat;
flat_t renamed;
struct padded padded;
struct nested nested;
struct bits bits;
enum colour colour;
enum negative negative;
_Bool truth;
__u64 numbers[3];
__int128 wide;
int (*function)(int a, char *b);
float fraction;
struct unknown *forward;

SEC("socket")
int use(void *ctx)
{
	/* What nobody refers to has no BTF. */
	flat.a = renamed.a = padded.kind = nested.name[0] = bits.low = truth;
	colour += negative;
	numbers[0] = wide = (long)function + (long)forward;
	return *(int *)&fraction;
}

char LICENSE[] SEC("license") = "GPL";
