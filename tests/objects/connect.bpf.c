/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* Counts connections of a cgroup by port, reports each, and refuses one port. */
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

struct event {
	__u64 cgroup;
	__u32 address;		/* network byte order */
	__u16 port;
	_Bool refused;
	__u8 _pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, __u32);
	__type(value, __u64);
} connections SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 65536);
	__type(value, struct event);
} events SEC(".maps");

const volatile __u16 forbidden;
__u64 seen;

SEC("cgroup/connect4")
int watch(struct bpf_sock_addr *ctx)
{
	struct event event = {
		.cgroup = bpf_get_current_cgroup_id(),
		.address = ctx->user_ip4,
		.port = bpf_ntohs(ctx->user_port),
	};
	__u32 port = event.port;
	int refused = forbidden && port == forbidden;
	__u64 one = 1, *count;

	event.refused = refused;
	__sync_fetch_and_add(&seen, 1);
	count = bpf_map_lookup_elem(&connections, &port);
	if (count)
		__sync_fetch_and_add(count, 1);
	else
		bpf_map_update_elem(&connections, &port, &one, BPF_NOEXIST);
	bpf_ringbuf_output(&events, &event, sizeof(event), 0);
	return !refused;
}

/* Forgets that a port may not be in the map: no kernel takes it. */
SEC("?cgroup/connect4")
int careless(struct bpf_sock_addr *ctx)
{
	__u32 port = bpf_ntohs(ctx->user_port);

	return *(__u64 *)bpf_map_lookup_elem(&connections, &port) != 0;
}

char LICENSE[] SEC("license") = "GPL";
