/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * The parts of kernel structures that we read, for CO-RE: names matter, offsets
 * do not.  A name after ___ is a flavour, an older shape of the same structure.
 */
#ifndef ACCEL_KERNEL_H
#define ACCEL_KERNEL_H

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct list_head {
	struct list_head *next;
};

struct ns_common {
	unsigned int inum;
};

struct net {
	struct ns_common ns;
};

typedef struct {
	struct net *net;
} possible_net_t;

typedef struct {
	int counter;
} atomic_t;

typedef struct {
	__s64 counter;
} atomic64_t;

struct kernfs_node {
	__u64 id;
};

struct cgroup {
	struct kernfs_node *kn;
};

struct sock_cgroup_data {
	struct cgroup *cgroup;
};

/*
 * Before 8520e224f547 ("bpf, cgroups: Fix cgroup v2 fallback on v1/v2 mixed mode",
 * 5.15 and late 5.10.y): the pointer, or with bit 0 set the v1 class and priority.
 */
struct sock_cgroup_data___union {
	__u64 val;
};

struct file {
	unsigned int f_flags;
};

struct socket {
	struct file *file;
};

struct wait_queue_head {
	struct list_head head;
};

struct socket_wq {
	struct wait_queue_head wait;
};

struct in6_addr___raw {
	__u8 bytes[16];
};

struct proto {
	unsigned long *memory_pressure;
};

struct page_counter {
	atomic64_t usage;
	unsigned long max;
	struct page_counter *parent;
};

struct mem_cgroup {
	struct page_counter memory;
	struct page_counter tcpmem;	/* v1, if tcpmem_active */
	_Bool tcpmem_active;
};

struct sock_common {
	unsigned char skc_state;
	struct proto *skc_prot;
	possible_net_t skc_net;
	atomic64_t skc_cookie;
	unsigned long skc_flags;
};

typedef struct {
	unsigned int val;
} kuid_t;

struct sock {
	struct sock_common __sk_common;
	struct {
		atomic_t rmem_alloc;
	} sk_backlog;
	struct {
		int owned;
	} sk_lock;
	int sk_rcvbuf;
	int sk_rcvlowat;
	__u8 sk_shutdown;
	__u8 sk_kern_sock : 1;
	kuid_t sk_uid;
	void *sk_user_data;
	struct socket *sk_socket;
	struct socket_wq *sk_wq;
	struct sock_cgroup_data sk_cgrp_data;
	struct mem_cgroup *sk_memcg;
};

/* include/net/sock.h; the numbers moved with the kernels. */
enum sock_flags {
	SOCK_KEEPOPEN = 3,
	SOCK_ZEROCOPY = 23,
};

struct tcp_ulp_ops;

struct inet_sock {
	struct sock sk;
};

struct inet_connection_sock {
	struct inet_sock icsk_inet;
	const struct tcp_ulp_ops *icsk_ulp_ops;
};

struct tcp_sock {
	struct inet_connection_sock inet_conn;
	__u32 rcv_nxt;
	__u32 copied_seq;
	__u32 snd_nxt;
	__u32 snd_una;
	__u32 write_seq;
	__u8 syn_data : 1;
	__u8 syn_fastopen : 1;
	_Bool is_mptcp;
};

struct sk_buff_head {
	__u32 qlen;
};

struct sk_psock {
	struct sk_buff_head ingress_skb;
	struct list_head ingress_msg;
};

struct sk_msg {
	struct sock *sk_redir;
};

#pragma clang attribute pop

/* include/net/tcp_states.h */
#define TCP_ESTABLISHED 1
#define TCP_CLOSE 7
#define TCP_CLOSE_WAIT 8

#define SHUTDOWN_MASK 3			/* include/net/sock.h */
#define O_NONBLOCK_FLAG 04000		/* all architectures but alpha, mips, parisc, sparc */
#define SK_USER_DATA_FLAGS 7UL		/* ~SK_USER_DATA_PTRMASK, include/net/sock.h */

/* The SO_* of asm-generic: all architectures but alpha, mips, parisc, sparc. */
#define SOL_SOCKET 1
#define SO_KEEPALIVE 9
#define SO_ZEROCOPY 60
#define SOL_IP 0
#define SOL_IPV6 41
#define SOL_TCP 6
#define SOL_TLS 282
#define TCP_KEEPIDLE 4
#define TCP_USER_TIMEOUT 18
#define TCP_ULP 31

/* IPT_SO_SET_REPLACE, the same for IPv6, and what follows */
#define NETFILTER_OPTIONS 64

#define AF_INET 2
#define AF_INET6 10

#define EBUSY 16
#define EEXIST 17
#define E2BIG 7

#endif
