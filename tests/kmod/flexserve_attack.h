/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * /dev/flexserve_attack: what a hostile host kernel can do, as far as the attack suite needs it. Test-only.
 *
 * Nothing here is checked: an access that the hypervisor refuses ends the calling task with an oops, which is the
 * expected outcome. Every ioctl runs in the task that calls it and holds no lock, so only that task is lost.
 *
 * mmap: the file offset is a physical address of memory that ALLOC gave, from this file or another.
 */
#ifndef _UAPI_FLEXSERVE_ATTACK_H
#define _UAPI_FLEXSERVE_ATTACK_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define FLEXATTACK_IOC(nr, type) _IOWR(0xF6, nr, type)

/* One call of the hypervisor. */
struct flexattack_call {
	__u64 regs[18];			/* x0-x17, in and out */
	__u64 conduit;
};
#define FLEXATTACK_SMC 0
#define FLEXATTACK_HVC 1
#define FLEXATTACK_SMC_1 2		/* SMC with immediate 1 */
#define FLEXATTACK_CALL FLEXATTACK_IOC(0, struct flexattack_call)

/* One access to a physical address. */
struct flexattack_access {
	__u64 address;
	__u64 value;			/* in: what to write; out: what was read */
	__u32 map;			/* how the kernel gets at it */
	__u32 act;
};
#define FLEXATTACK_LINEAR 0		/* the kernel's own map of RAM */
#define FLEXATTACK_CACHED 1		/* a new mapping as normal memory */
#define FLEXATTACK_DEVICE 2		/* a new mapping as device memory */
#define FLEXATTACK_READ 0		/* | width in bytes << 8: 1, 2, 4 or 8 */
#define FLEXATTACK_WRITE 1		/* | width in bytes << 8 */
#define FLEXATTACK_ACCESS FLEXATTACK_IOC(1, struct flexattack_access)

/* Physically contiguous zeroed pages. They stay allocated, whoever closes the file or dies, until FREE. */
struct flexattack_pages {
	__u64 address;
	__u64 count;			/* ALLOC: a power of two, at most 1024. FREE: any. */
};
#define FLEXATTACK_ALLOC FLEXATTACK_IOC(2, struct flexattack_pages)
#define FLEXATTACK_FREE FLEXATTACK_IOC(3, struct flexattack_pages)

/* A page of the module's own code. Once it was given, what comes back is no code any more. */
struct flexattack_code {
	__u64 address;			/* out */
	__u64 value;			/* CALL, out: what the code returned: FLEXATTACK_CODE_RETURNS */
};
#define FLEXATTACK_CODE_RETURNS 0xC0DE
#define FLEXATTACK_CODE FLEXATTACK_IOC(4, struct flexattack_code)
#define FLEXATTACK_CODE_CALL FLEXATTACK_IOC(5, struct flexattack_code)

/*
 * One call with interrupts off, and the CPU's state around it (cpu_state.c has the registers). Registers that can take
 * another value for a moment are XORed with plant first; vectors hold random bytes. Everything is put back.
 */
#define FLEXATTACK_STATE_REGISTERS 57
struct flexattack_state {
	__u64 regs[18];			/* x0-x17, in and out */
	__u64 plant;			/* in */
	__u64 breakpoint;		/* in: address of an instruction at EL1, or 0 */
	__u64 watchpoint;		/* in: address of a doubleword at EL1, or 0 */
	__u64 features;			/* out: what the CPU has, as the host sees it */
	__u64 before[FLEXATTACK_STATE_REGISTERS];
	__u64 after[FLEXATTACK_STATE_REGISTERS];
	__u64 vector_bytes;		/* length of a vector */
	__u64 vector_bits;		/* bytes that were not zero */
	__u64 vector_changes;		/* bytes of vectors, predicates and FFR that changed */
	__u64 ticks;			/* of the counter, that the call took */
	__u64 cycles;			/* of PMCCNTR_EL0 */
	__u64 events;			/* CPU_CYCLES of event counter 0 */
};
#define FLEXATTACK_STATE FLEXATTACK_IOC(48, struct flexattack_state)

/* One access to a system register by its number in cpu_state.c; it may end the task. */
struct flexattack_register {
	__u64 value;
	__u32 number;
	__u32 write;
};
#define FLEXATTACK_REGISTER FLEXATTACK_IOC(49, struct flexattack_register)
#define FLEXATTACK_IPI FLEXATTACK_IOC(50, struct flexattack_register)	/* value: CPUs that ran a function */

#endif
