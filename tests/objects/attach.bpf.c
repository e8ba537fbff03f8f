/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * One program of each kind that attaches, counting how often it was run.
 * Those that the whole machine would run look at the caller first.
 */

#include <linux/bpf.h>

#define SEC(name) __attribute__((section(name), used))
#define __uint(name, value) int(*name)[value]
#define __type(name, value) typeof(value) *name
#define CORE __attribute__((preserve_access_index))

typedef unsigned int u32;
typedef unsigned long long u64;

static u64 (*bpf_get_current_pid_tgid)(void) = (void *)14;
static u64 (*bpf_get_attach_cookie)(void *) = (void *)174;
static long (*bpf_seq_write)(void *, const void *, u32) = (void *)127;

/* The process whose calls count. */
const volatile u32 pid;

u64 hits;
u64 cookie;

static __attribute__((always_inline)) int is_mine(void)
{
	return bpf_get_current_pid_tgid() >> 32 == pid;
}

static __attribute__((always_inline)) int count_mine(void)
{
	if (is_mine())
		__sync_fetch_and_add(&hits, 1);
	return 0;
}

/* --- tracing ------------------------------------------------------------- */

SEC("fentry/bpf_fentry_test1")
int on_entry(u64 *ctx)
{
	cookie = bpf_get_attach_cookie(ctx);
	return count_mine();
}

SEC("fexit/bpf_fentry_test1")
int on_exit(u64 *ctx)
{
	return count_mine();
}

SEC("fmod_ret/bpf_modify_return_test")
int instead(u64 *ctx)
{
	count_mine();
	return 0;
}

SEC("tp_btf/sys_enter")
int on_call(u64 *ctx)
{
	return count_mine();
}

SEC("raw_tp/sys_enter")
int on_raw_call(u64 *ctx)
{
	return count_mine();
}

SEC("tp/syscalls/sys_enter_getpgid")
int on_getpgid(void *ctx)
{
	cookie = bpf_get_attach_cookie(ctx);
	return count_mine();
}

SEC("lsm/task_getpgid")
int may_getpgid(u64 *ctx)
{
	count_mine();
	return 0;
}

SEC("perf_event")
int on_event(void *ctx)
{
	return count_mine();
}

SEC("uprobe")
int on_function(void *ctx)
{
	cookie = bpf_get_attach_cookie(ctx);
	return count_mine();
}

SEC("uprobe.multi")
int on_functions(void *ctx)
{
	return count_mine();
}

/* --- network ------------------------------------------------------------- */

__attribute__((noinline)) int verdict(struct xdp_md *ctx)
{
	return ctx->data_end ? XDP_PASS : XDP_ABORTED;
}

SEC("xdp")
int on_frame(struct xdp_md *ctx)
{
	__sync_fetch_and_add(&hits, 1);
	return verdict(ctx);
}

SEC("freplace/verdict")
int drop(struct xdp_md *ctx)
{
	return XDP_DROP;
}

SEC("tc")
int on_packet(struct __sk_buff *skb)
{
	__sync_fetch_and_add(&hits, 1);
	return -1; /* TC_ACT_UNSPEC, TCX_NEXT: let others look */
}

SEC("netfilter")
int drop_packet(void *ctx)
{
	__sync_fetch_and_add(&hits, 1);
	return 0; /* NF_DROP */
}

SEC("sk_lookup")
int no_socket(struct bpf_sk_lookup *ctx)
{
	__sync_fetch_and_add(&hits, 1);
	return SK_DROP;
}

SEC("flow_dissector")
int dissect(struct __sk_buff *skb)
{
	__sync_fetch_and_add(&hits, 1);
	return BPF_OK;
}

SEC("cgroup/connect4")
int refuse(struct bpf_sock_addr *ctx)
{
	__sync_fetch_and_add(&hits, 1);
	return 0;
}

/* --- sockets ------------------------------------------------------------- */

struct {
	__uint(type, BPF_MAP_TYPE_SOCKHASH);
	__uint(max_entries, 4);
	__type(key, u64);
	__type(value, u64);
} sockets SEC(".maps");

SEC("sk_skb/verdict")
int swallow(struct __sk_buff *skb)
{
	__sync_fetch_and_add(&hits, 1);
	return SK_DROP;
}

SEC("socket")
int ignore(struct __sk_buff *skb)
{
	__sync_fetch_and_add(&hits, 1);
	return 0;
}

SEC("syscall")
int by_hand(void *ctx)
{
	return 0;
}

/* --- iterators ----------------------------------------------------------- */

struct seq_file;

struct bpf_iter_meta {
	struct seq_file *seq;
} CORE;

struct task_struct {
	int pid;
	int tgid;
} CORE;

struct bpf_iter__task {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
} CORE;

SEC("iter/task")
int tasks(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task;
	u32 number;

	if (!task)
		return 0;
	number = task->tgid;
	bpf_seq_write(ctx->meta->seq, &number, sizeof(number));
	return 0;
}

struct kernfs_node {
	u64 id;
} CORE;

struct cgroup {
	struct kernfs_node *kn;
} CORE;

struct bpf_iter__cgroup {
	struct bpf_iter_meta *meta;
	struct cgroup *cgroup;
} CORE;

SEC("iter/cgroup")
int cgroups(struct bpf_iter__cgroup *ctx)
{
	struct cgroup *cgroup = ctx->cgroup;
	u64 number;

	if (!cgroup)
		return 0;
	number = cgroup->kn->id;
	bpf_seq_write(ctx->meta->seq, &number, sizeof(number));
	return 0;
}

char _license[] SEC("license") = "GPL";
