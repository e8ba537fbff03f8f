/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* A function in no section of its own, and no other. */
int sole(void *ctx)
{
	return 0;
}
