/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* bcc opens this file and needs nothing from it: it carries its own bpf.h. */
