/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* Declaration tags on a map, its struct and its typedef, but not those on members. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#define TAG(text) __attribute__((btf_decl_tag(text)))

typedef struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32) TAG("of a member");
	__type(value, __u32);
} TAG("of the struct") named TAG("of the typedef");

named tagged SEC(".maps") TAG("of the map") TAG("second of the map");
named half_tagged SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} untagged SEC(".maps");

SEC("socket")
int use(void *ctx)
{
	return (long)&tagged && (long)&half_tagged && (long)&untagged;
}

char LICENSE[] SEC("license") = "GPL";
