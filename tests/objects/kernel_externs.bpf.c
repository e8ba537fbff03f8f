/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* What programs refer to in the kernel by name: settings, addresses, variables, functions. */
#include <linux/bpf.h>
#include <stdbool.h>
#include <bpf/bpf_helpers.h>

struct task_struct {
	int pid;
} __attribute__((preserve_access_index));

struct __sk_buff;

extern int LINUX_KERNEL_VERSION __kconfig;
extern int CONFIG_HZ __kconfig;
extern bool CONFIG_BPF_SYSCALL __kconfig;
extern enum libbpf_tristate CONFIG_BPF __kconfig;
extern char CONFIG_DEFAULT_HOSTNAME[16] __kconfig __weak;
extern unsigned long CONFIG_NO_SUCH_SETTING __kconfig __weak;
extern bool LINUX_HAS_BPF_COOKIE __kconfig __weak;

extern const void schedule __ksym;
extern const void no_such_symbol __ksym __weak;

extern const int bpf_prog_active __ksym;
extern const int no_such_variable __ksym __weak;

extern struct task_struct *bpf_task_from_pid(int pid) __ksym;
extern void bpf_task_release(struct task_struct *task) __ksym;
extern void *bpf_cast_to_kern_ctx(void *ctx) __ksym;
extern int no_such_function(int one) __ksym __weak;
/* A flavour: the same function, declared in another way. */
extern struct task_struct *bpf_task_from_pid___flavour(int number) __ksym __weak;
/* There is one of that name, but it takes something else. */
extern int bpf_task_release___other(int one, int two) __ksym __weak;

extern const void no_such_strong_symbol __ksym;
extern const int no_such_strong_variable __ksym;
extern int no_such_strong_function(void) __ksym;

int version, hz, tristate, active = -1;
bool has_syscall, has_cookie;
char hostname[16];
unsigned long nothing = 1;
unsigned long address, no_address = 1, no_variable = 1;

SEC("raw_tp/sys_enter")
int settings(void *ctx)
{
	version = LINUX_KERNEL_VERSION;
	hz = CONFIG_HZ;
	has_syscall = CONFIG_BPF_SYSCALL;
	tristate = CONFIG_BPF;
	for (int i = 0; i < sizeof(hostname); i++)
		hostname[i] = CONFIG_DEFAULT_HOSTNAME[i];
	nothing = CONFIG_NO_SUCH_SETTING;
	has_cookie = LINUX_HAS_BPF_COOKIE;
	return 0;
}

SEC("raw_tp/sys_enter")
int symbols(void *ctx)
{
	address = (unsigned long)&schedule;
	no_address = (unsigned long)&no_such_symbol;
	no_variable = (unsigned long)&no_such_variable;
	return 0;
}

SEC("?raw_tp/sys_enter")
int variables(void *ctx)
{
	int *mine = bpf_this_cpu_ptr(&bpf_prog_active);

	active = *mine;
	return 0;
}

SEC("syscall")
int functions(int *ctx)
{
	struct task_struct *task;
	int pid = -1;

	if (&no_such_function)
		return no_such_function(1);
	if (bpf_task_release___other)
		return bpf_task_release___other(1, 2);
	task = bpf_task_from_pid___flavour(*ctx);
	if (task) {
		pid = task->pid;
		bpf_task_release(task);
	}
	return pid;
}

SEC("tc")
int context(struct __sk_buff *ctx)
{
	return bpf_cast_to_kern_ctx(ctx) != 0;
}

SEC("?syscall")
int unguarded(int *ctx)
{
	return no_such_function(1);
}

SEC("?syscall")
int incompatible(int *ctx)
{
	return bpf_task_release___other(1, 2);
}

SEC("?raw_tp/sys_enter")
int demanding(void *ctx)
{
	return &no_such_strong_symbol == ctx || &no_such_strong_variable == ctx ||
	       no_such_strong_function();
}

char LICENSE[] SEC("license") = "GPL";
