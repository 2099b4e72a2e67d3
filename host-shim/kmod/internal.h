/* SPDX-License-Identifier: GPL-2.0 */
/* What the files of the module share. */
#ifndef _FLEXSERVE_INTERNAL_H
#define _FLEXSERVE_INTERNAL_H

#include <linux/types.h>

/* One message to the service. Returns its status, for flex_errno; out gets x4-x7. */
s32 flex_message(u64 *out, u64 op, u64 a, u64 b, u64 c);
int flex_errno(s32 status);

int flex_npu_init(void);
void flex_npu_exit(void);

#endif
