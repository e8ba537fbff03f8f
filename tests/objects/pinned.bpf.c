/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* A map that objects share by its pin, beside one that they do not. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8);
	__type(key, __u32);
	__type(value, __u64);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} shared SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8);
	__type(key, __u32);
	__type(value, __u64);
} own SEC(".maps");

enum mode { OFF, ON = 3 };

const volatile __u32 port = 80;
const volatile _Bool verbose;
const volatile char name[16] = "web";
const volatile enum mode mode = ON;
const volatile __u16 ports[2] = { 1, 2 };
__u64 total;

SEC("sk_msg")
int first(struct sk_msg_md *msg)
{
	__u32 key = port + ports[1] + verbose + mode + name[0];

	return bpf_map_lookup_elem(&shared, &key) ? SK_DROP : SK_PASS;
}

SEC("sk_msg")
int second(struct sk_msg_md *msg)
{
	__u32 key = msg->size;

	total++;
	return bpf_map_lookup_elem(&own, &key) ? SK_DROP : SK_PASS;
}

char LICENSE[] SEC("license") = "GPL";
