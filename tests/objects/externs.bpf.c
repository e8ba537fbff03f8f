/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * Externs of every kind: settings of several alignments, symbols, a variable, functions;
 * weak ones, and some that no program refers to.
 */
#include <linux/bpf.h>
#include <stdbool.h>
#include <bpf/bpf_helpers.h>

extern bool CONFIG_SMALL __kconfig;
extern unsigned long CONFIG_WIDE __kconfig __weak;
extern int CONFIG_NUMBER __kconfig;
extern char CONFIG_TEXT[5] __kconfig __weak;
extern enum libbpf_tristate CONFIG_STATE __kconfig;
extern int CONFIG_IDLE __kconfig;

extern const void symbol __ksym;
extern const int variable __ksym __weak;
extern int function(int, void *data) __ksym;
extern int function___flavour(int one) __ksym __weak;
extern int unused(int one) __ksym;

unsigned long number, address;

SEC("socket")
int settings(void *ctx)
{
	number = CONFIG_SMALL + CONFIG_WIDE + CONFIG_NUMBER + CONFIG_TEXT[3] + CONFIG_STATE;
	return 0;
}

SEC("socket")
int symbols(void *ctx)
{
	address = (long)&symbol;
	if (&variable)
		address += variable;
	return 0;
}

SEC("socket")
int calls(void *ctx)
{
	if (function___flavour)
		return function___flavour(1);
	return function(1, ctx);
}
