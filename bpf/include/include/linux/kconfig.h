/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* bcc takes a directory that holds this file for a kernel source tree. */
#define CONFIG_BPF_SYSCALL 1
#define __always_inline inline __attribute__((always_inline))
