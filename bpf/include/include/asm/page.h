/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* The loader passes the machine's page size: 4 KiB on x86, up to 64 KiB on arm64. */
#ifndef PAGE_SIZE
#define PAGE_SIZE 4096
#endif
