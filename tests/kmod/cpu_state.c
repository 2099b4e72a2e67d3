// SPDX-License-Identifier: GPL-2.0
/*
 * What a call of the hypervisor leaves of the CPU's state: registers, vectors, counters, debug. Part of
 * flexserve_attack.c, which includes it. See flexserve_attack.h.
 */
#include <linux/atomic.h>
#include <linux/irqflags.h>
#include <linux/random.h>
#include <linux/slab.h>
#include <linux/smp.h>
#include <asm/neon.h>
#include <asm/sysreg.h>

#define NEED_PAUTH BIT(0)
#define NEED_PMU BIT(1)
#define NEED_SVE BIT(2)
#define NEED_TCR2 BIT(3)
#define NEED_SCTLR2 BIT(4)
#define NEED_SCXTNUM BIT(5)
#define PLANT BIT(31)			/* another value may stand there for a moment */

/* Encoding, and what it needs. The order is that of tests/src/cpu_state.rs. */
#define STATE_REGISTERS(X) \
	X(3, 0, 1, 0, 0, 0)			/* SCTLR_EL1 */ \
	X(3, 0, 1, 0, 2, 0)			/* CPACR_EL1 */ \
	X(3, 0, 2, 0, 0, 0)			/* TTBR0_EL1 */ \
	X(3, 0, 2, 0, 1, 0)			/* TTBR1_EL1 */ \
	X(3, 0, 2, 0, 2, 0)			/* TCR_EL1 */ \
	X(3, 0, 10, 2, 0, 0)			/* MAIR_EL1 */ \
	X(3, 0, 10, 3, 0, 0)			/* AMAIR_EL1 */ \
	X(3, 0, 12, 0, 0, 0)			/* VBAR_EL1 */ \
	X(3, 0, 13, 0, 1, PLANT)		/* CONTEXTIDR_EL1 */ \
	X(3, 0, 5, 2, 0, PLANT)			/* ESR_EL1 */ \
	X(3, 0, 5, 1, 0, PLANT)			/* AFSR0_EL1 */ \
	X(3, 0, 5, 1, 1, PLANT)			/* AFSR1_EL1 */ \
	X(3, 0, 6, 0, 0, PLANT)			/* FAR_EL1 */ \
	X(3, 0, 4, 0, 1, PLANT)			/* ELR_EL1 */ \
	X(3, 0, 4, 0, 0, PLANT)			/* SPSR_EL1 */ \
	X(3, 0, 4, 1, 0, 0)			/* SP_EL0 */ \
	X(3, 3, 13, 0, 2, PLANT)		/* TPIDR_EL0 */ \
	X(3, 3, 13, 0, 3, PLANT)		/* TPIDRRO_EL0 */ \
	X(3, 0, 13, 0, 4, 0)			/* TPIDR_EL1 */ \
	X(3, 0, 7, 4, 0, PLANT)			/* PAR_EL1 */ \
	X(3, 2, 0, 0, 0, PLANT)			/* CSSELR_EL1 */ \
	X(3, 0, 14, 1, 0, PLANT)		/* CNTKCTL_EL1 */ \
	X(2, 0, 0, 2, 2, 0)			/* MDSCR_EL1 */ \
	X(3, 3, 14, 3, 1, 0)			/* CNTV_CTL_EL0 */ \
	X(3, 3, 14, 3, 2, 0)			/* CNTV_CVAL_EL0 */ \
	X(3, 3, 4, 2, 1, 0)			/* DAIF */ \
	X(2, 0, 1, 1, 4, 0)			/* OSLSR_EL1 */ \
	X(2, 0, 0, 0, 4, PLANT)			/* DBGBVR0_EL1 */ \
	X(2, 0, 0, 0, 5, 0)			/* DBGBCR0_EL1 */ \
	X(2, 0, 0, 0, 6, PLANT)			/* DBGWVR0_EL1 */ \
	X(2, 0, 0, 0, 7, 0)			/* DBGWCR0_EL1 */ \
	X(3, 0, 4, 6, 0, 0)			/* ICC_PMR_EL1 */ \
	X(3, 0, 12, 12, 7, 0)			/* ICC_IGRPEN1_EL1 */ \
	X(3, 3, 4, 4, 0, 0)			/* FPCR */ \
	X(3, 3, 4, 4, 1, 0)			/* FPSR */ \
	X(3, 3, 9, 12, 0, NEED_PMU)		/* PMCR_EL0 */ \
	X(3, 3, 9, 12, 1, NEED_PMU)		/* PMCNTENSET_EL0 */ \
	X(3, 0, 9, 14, 1, NEED_PMU)		/* PMINTENSET_EL1 */ \
	X(3, 3, 9, 12, 5, NEED_PMU | PLANT)	/* PMSELR_EL0 */ \
	X(3, 3, 9, 14, 0, NEED_PMU)		/* PMUSERENR_EL0 */ \
	X(3, 3, 14, 15, 7, NEED_PMU)		/* PMCCFILTR_EL0 */ \
	X(3, 3, 14, 12, 0, NEED_PMU)		/* PMEVTYPER0_EL0 */ \
	X(3, 0, 2, 1, 0, NEED_PAUTH)		/* APIAKeyLo_EL1: this code signs with it */ \
	X(3, 0, 2, 1, 1, NEED_PAUTH)		/* APIAKeyHi_EL1 */ \
	X(3, 0, 2, 1, 2, NEED_PAUTH | PLANT)	/* APIBKeyLo_EL1 */ \
	X(3, 0, 2, 1, 3, NEED_PAUTH | PLANT)	/* APIBKeyHi_EL1 */ \
	X(3, 0, 2, 2, 0, NEED_PAUTH | PLANT)	/* APDAKeyLo_EL1 */ \
	X(3, 0, 2, 2, 1, NEED_PAUTH | PLANT)	/* APDAKeyHi_EL1 */ \
	X(3, 0, 2, 2, 2, NEED_PAUTH | PLANT)	/* APDBKeyLo_EL1 */ \
	X(3, 0, 2, 2, 3, NEED_PAUTH | PLANT)	/* APDBKeyHi_EL1 */ \
	X(3, 0, 2, 3, 0, NEED_PAUTH | PLANT)	/* APGAKeyLo_EL1 */ \
	X(3, 0, 2, 3, 1, NEED_PAUTH | PLANT)	/* APGAKeyHi_EL1 */ \
	X(3, 0, 1, 2, 0, NEED_SVE)		/* ZCR_EL1 */ \
	X(3, 0, 2, 0, 3, NEED_TCR2)		/* TCR2_EL1 */ \
	X(3, 0, 1, 0, 3, NEED_SCTLR2)		/* SCTLR2_EL1 */ \
	X(3, 3, 13, 0, 7, NEED_SCXTNUM | PLANT)	/* SCXTNUM_EL0 */ \
	X(3, 0, 13, 0, 7, NEED_SCXTNUM | PLANT)	/* SCXTNUM_EL1 */

static u64 state_field(u64 id, unsigned int shift)
{
	return id >> shift & 0xf;
}

/* What the CPU has, as the host sees it. */
static u32 state_features(void)
{
	u64 pfr0 = read_sysreg_s(SYS_ID_AA64PFR0_EL1), pfr1 = read_sysreg_s(SYS_ID_AA64PFR1_EL1);
	u64 dfr0 = read_sysreg_s(SYS_ID_AA64DFR0_EL1), mmfr3 = read_sysreg_s(sys_reg(3, 0, 0, 7, 3));
	u64 isar1 = read_sysreg_s(SYS_ID_AA64ISAR1_EL1), isar2 = read_sysreg_s(SYS_ID_AA64ISAR2_EL1);
	u64 csv2 = state_field(pfr0, 56), pmu = state_field(dfr0, 8);
	u32 has = 0;

	if (state_field(isar1, 4) || state_field(isar1, 8) || state_field(isar2, 12))
		has |= NEED_PAUTH;
	if (pmu && pmu != 0xf)
		has |= NEED_PMU;
	if (state_field(pfr0, 32))
		has |= NEED_SVE;
	if (state_field(mmfr3, 0))
		has |= NEED_TCR2;
	if (state_field(mmfr3, 4))
		has |= NEED_SCTLR2;
	if (csv2 >= 2 || (csv2 == 1 && state_field(pfr1, 32) >= 2))
		has |= NEED_SCXTNUM;
	return has;
}

/* Reads all registers that the CPU has; the others read 0. */
static void state_read(u32 has, u64 *values)
{
#define X(op0, op1, crn, crm, op2, need) \
	*values++ = (has & (need)) == ((need) & ~PLANT) ? read_sysreg_s(sys_reg(op0, op1, crn, crm, op2)) : 0;
	STATE_REGISTERS(X)
#undef X
}

/* Writes those that may be changed for a moment. */
static void state_plant(u32 has, const u64 *values)
{
#define X(op0, op1, crn, crm, op2, need) \
	if (((need) & PLANT) && (has & (need)) == ((need) & ~PLANT)) \
		write_sysreg_s(*values, sys_reg(op0, op1, crn, crm, op2)); \
	values++;
	STATE_REGISTERS(X)
#undef X
	isb();
}

#define X(...) + 1
static_assert(FLEXATTACK_STATE_REGISTERS == 0 STATE_REGISTERS(X));
#undef X

/* Vectors of at most 2048 bits: Z0-Z31, P0-P15, FFR; without SVE V0-V31 in the same place. */
#define VECTORS_SIZE (32 * 256 + 17 * 32)
#define EACH_16 "0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15"
#define EACH_32 EACH_16 ",16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31"

static u64 vectors_length(u32 has)
{
	u64 length = 16;

	if (has & NEED_SVE)
		asm volatile(".arch_extension sve\n rdvl %0, #1\n .arch_extension nosve" : "=r" (length));
	return length;
}

static noinline void vectors_load(u32 has, const u8 *from)
{
	if (has & NEED_SVE)
		asm volatile(".arch_extension sve\n"
			     "	ptrue	p0.b, vl3\n	wrffr	p0.b\n"
			     "	.irp n," EACH_32 "\n	ldr	z\\n, [%0, #\\n, mul vl]\n	.endr\n"
			     "	addvl	%0, %0, #16\n	addvl	%0, %0, #16\n"
			     "	.irp n," EACH_16 "\n	ldr	p\\n, [%0, #\\n, mul vl]\n	.endr\n"
			     ".arch_extension nosve" : "+r" (from) : : "memory");
	else
		asm volatile(".arch_extension simd\n"
			     "	.irp n," EACH_32 "\n	ldr	q\\n, [%0], #16\n	.endr\n"
			     ".arch_extension nosimd" : "+r" (from) : : "memory");
}

static noinline void vectors_store(u32 has, u8 *to)
{
	if (has & NEED_SVE)
		asm volatile(".arch_extension sve\n"
			     "	.irp n," EACH_32 "\n	str	z\\n, [%0, #\\n, mul vl]\n	.endr\n"
			     "	addvl	%0, %0, #16\n	addvl	%0, %0, #16\n"
			     "	.irp n," EACH_16 "\n	str	p\\n, [%0, #\\n, mul vl]\n	.endr\n"
			     "	rdffr	p0.b\n	addpl	%0, %0, #16\n	str	p0, [%0]\n"
			     ".arch_extension nosve" : "+r" (to) : : "memory");
	else
		asm volatile(".arch_extension simd\n"
			     "	.irp n," EACH_32 "\n	str	q\\n, [%0], #16\n	.endr\n"
			     ".arch_extension nosimd" : "+r" (to) : : "memory");
}

/* Debug registers: debugging at EL1 on, one breakpoint, one watchpoint on 8 bytes. */
#define MDSCR_KDE_MDE (BIT(13) | BIT(15))
#define BREAK_AT_EL1 (BIT(0) | 1 << 1 | 0xf << 5)
#define WATCH_AT_EL1 (BIT(0) | 1 << 1 | 3 << 3 | 0xff << 5)
#define CPU_CYCLES 0x11
#define PMCR_E_LC (BIT(0) | BIT(6))
#define COUNT_EVENT_AND_CYCLES (BIT(31) | BIT(0))

/* The vectors that are planted, and what is found before and after the call. */
struct vectors {
	u8 planted[VECTORS_SIZE] __aligned(16), before[VECTORS_SIZE] __aligned(16), after[VECTORS_SIZE] __aligned(16);
};

/* Interrupts are off: nothing but the call comes between. */
static void state_call(struct flexattack_state *state, struct vectors *vectors, u32 has)
{
	u64 own[FLEXATTACK_STATE_REGISTERS], planted[FLEXATTACK_STATE_REGISTERS];
	u64 mdscr = read_sysreg(mdscr_el1), cpacr = read_sysreg(cpacr_el1), zcr = 0, pmcr = 0, enabled = 0;
	struct arm_smccc_1_2_regs regs;

	memcpy(&regs, state->regs, sizeof(regs));
	state_read(has, own);
	for (int i = 0; i < FLEXATTACK_STATE_REGISTERS; i++)
		planted[i] = own[i] ^ state->plant;
	state_plant(has, planted);
	write_sysreg(cpacr | 3 << 16 | 3 << 20, cpacr_el1);
	isb();
	if (has & NEED_SVE) {
		zcr = read_sysreg_s(SYS_ZCR_EL1);
		write_sysreg_s(0xf, SYS_ZCR_EL1);
		isb();
	}
	if (has & NEED_PMU) {
		pmcr = read_sysreg_s(SYS_PMCR_EL0) & 0xff;
		enabled = read_sysreg_s(SYS_PMCNTENSET_EL0);
		write_sysreg_s(0, SYS_PMCCFILTR_EL0);
		write_sysreg_s(CPU_CYCLES, sys_reg(3, 3, 14, 12, 0));
		write_sysreg_s(COUNT_EVENT_AND_CYCLES, SYS_PMCNTENSET_EL0);
		write_sysreg_s(pmcr | PMCR_E_LC, SYS_PMCR_EL0);
	}
	if (state->breakpoint) {
		write_sysreg(state->breakpoint, dbgbvr0_el1);
		write_sysreg(BREAK_AT_EL1, dbgbcr0_el1);
	}
	if (state->watchpoint) {
		write_sysreg(state->watchpoint, dbgwvr0_el1);
		write_sysreg(WATCH_AT_EL1, dbgwcr0_el1);
	}
	write_sysreg(mdscr | MDSCR_KDE_MDE, mdscr_el1);
	isb();
	state->vector_bytes = vectors_length(has);
	vectors_load(has, vectors->planted);
	vectors_store(has, vectors->before);
	vectors_load(has, vectors->planted);
	write_sysreg(0x03c00000, fpcr);
	write_sysreg(0x0800009f, fpsr);
	state_read(has, state->before);
	state->ticks = read_sysreg(cntvct_el0);
	if (has & NEED_PMU) {
		state->cycles = read_sysreg_s(SYS_PMCCNTR_EL0);
		state->events = read_sysreg_s(sys_reg(3, 3, 14, 8, 0));
	}
	arm_smccc_1_2_smc(&regs, &regs);
	if (has & NEED_PMU) {
		state->events = (u32)(read_sysreg_s(sys_reg(3, 3, 14, 8, 0)) - state->events);
		state->cycles = read_sysreg_s(SYS_PMCCNTR_EL0) - state->cycles;
	}
	state->ticks = read_sysreg(cntvct_el0) - state->ticks;
	state_read(has, state->after);
	vectors_store(has, vectors->after);
	write_sysreg(0, fpcr);
	write_sysreg(0, fpsr);
	write_sysreg(mdscr, mdscr_el1);
	if (state->breakpoint)
		write_sysreg(0, dbgbcr0_el1);
	if (state->watchpoint)
		write_sysreg(0, dbgwcr0_el1);
	if (has & NEED_PMU) {
		write_sysreg_s(pmcr, SYS_PMCR_EL0);
		write_sysreg_s(COUNT_EVENT_AND_CYCLES & ~enabled, SYS_PMCNTENCLR_EL0);
	}
	if (has & NEED_SVE)
		write_sysreg_s(zcr, SYS_ZCR_EL1);
	write_sysreg(cpacr, cpacr_el1);
	isb();
	state_plant(has, own);
	memcpy(state->regs, &regs, sizeof(regs));
}

static int attack_state(struct flexattack_state __user *user)
{
	struct flexattack_state *state = kzalloc(sizeof(*state), GFP_KERNEL);
	struct vectors *vectors = kzalloc(sizeof(*vectors), GFP_KERNEL);
	u32 has = state_features();
	unsigned long flags;
	int ret = -ENOMEM;

	if (!state || !vectors)
		goto out;
	ret = -EFAULT;
	if (copy_from_user(state, user, sizeof(*state)))
		goto out;
	get_random_bytes(vectors->planted, sizeof(vectors->planted));
	kernel_neon_begin();		/* this process's own vectors are safe now */
	local_irq_save(flags);
	state_call(state, vectors, has);
	local_irq_restore(flags);
	kernel_neon_end();
	for (int i = 0; i < VECTORS_SIZE; i++)
		state->vector_changes += vectors->before[i] != vectors->after[i];
	for (int i = 0; i < VECTORS_SIZE; i++)
		state->vector_bits += !!vectors->before[i];
	state->features = has;
	if (!copy_to_user(user, state, sizeof(*state)))
		ret = 0;
out:
	kfree(vectors);
	kfree(state);
	return ret;
}

/* Registers by number, for reads that may end the task. The order is that of tests/src/cpu_state.rs. */
static int attack_register(struct flexattack_register *request)
{
	u64 value = request->value;

	/* SME as a kernel that knew it would have it: else this kernel's own setting comes first. */
	sysreg_clear_set(cpacr_el1, 0, 3 << 24);
	isb();
	switch (request->number) {
#define REGISTER(number, op0, op1, crn, crm, op2) \
	case number: \
		if (request->write) \
			write_sysreg_s(value, sys_reg(op0, op1, crn, crm, op2)); \
		else \
			value = read_sysreg_s(sys_reg(op0, op1, crn, crm, op2)); \
		break
	REGISTER(0, 3, 0, 0, 4, 0);	/* ID_AA64PFR0_EL1 */
	REGISTER(1, 3, 0, 0, 4, 1);	/* ID_AA64PFR1_EL1 */
	REGISTER(2, 3, 0, 0, 4, 2);	/* ID_AA64PFR2_EL1 */
	REGISTER(3, 3, 0, 0, 4, 4);	/* ID_AA64ZFR0_EL1 */
	REGISTER(4, 3, 0, 0, 4, 5);	/* ID_AA64SMFR0_EL1 */
	REGISTER(5, 3, 0, 0, 5, 0);	/* ID_AA64DFR0_EL1 */
	REGISTER(6, 3, 0, 0, 5, 1);	/* ID_AA64DFR1_EL1 */
	REGISTER(7, 3, 0, 0, 6, 0);	/* ID_AA64ISAR0_EL1 */
	REGISTER(8, 3, 0, 0, 6, 1);	/* ID_AA64ISAR1_EL1 */
	REGISTER(9, 3, 0, 0, 6, 2);	/* ID_AA64ISAR2_EL1 */
	REGISTER(10, 3, 0, 0, 7, 0);	/* ID_AA64MMFR0_EL1 */
	REGISTER(11, 3, 0, 0, 7, 1);	/* ID_AA64MMFR1_EL1 */
	REGISTER(12, 3, 0, 0, 7, 2);	/* ID_AA64MMFR2_EL1 */
	REGISTER(13, 3, 0, 0, 7, 3);	/* ID_AA64MMFR3_EL1 */
	REGISTER(14, 3, 0, 9, 9, 0);	/* PMSCR_EL1: SPE */
	REGISTER(15, 3, 0, 9, 11, 0);	/* TRBLIMITR_EL1: TRBE */
	REGISTER(16, 2, 1, 9, 0, 0);	/* BRBCR_EL1: BRBE */
	REGISTER(17, 3, 0, 1, 0, 6);	/* GCR_EL1: MTE */
	REGISTER(18, 3, 0, 5, 6, 0);	/* TFSR_EL1: MTE */
	REGISTER(19, 3, 0, 1, 2, 6);	/* SMCR_EL1: SME */
	REGISTER(20, 3, 3, 4, 2, 2);	/* SVCR: SME */
	REGISTER(21, 3, 3, 13, 0, 5);	/* TPIDR2_EL0: SME */
	REGISTER(22, 3, 3, 13, 2, 0);	/* AMCR_EL0: AMU */
	REGISTER(23, 3, 0, 10, 5, 0);	/* MPAM1_EL1: MPAM */
	REGISTER(24, 3, 0, 10, 4, 3);	/* LORC_EL1: LORegions */
	REGISTER(25, 3, 4, 1, 1, 0);	/* HCR_EL2: nested virtualisation */
	REGISTER(26, 3, 4, 12, 0, 0);	/* VBAR_EL2: nested virtualisation */
	REGISTER(27, 3, 0, 10, 2, 3);	/* PIR_EL1: permission indirection */
	REGISTER(28, 3, 0, 2, 5, 0);	/* GCSCR_EL1: guarded control stack */
	REGISTER(29, 3, 0, 1, 2, 1);	/* TRFCR_EL1: trace filter */
	REGISTER(30, 3, 0, 12, 11, 5);	/* ICC_SGI1R_EL1 */
	REGISTER(31, 3, 0, 12, 11, 6);	/* ICC_ASGI1R_EL1 */
	REGISTER(32, 3, 0, 12, 11, 7);	/* ICC_SGI0R_EL1 */
#undef REGISTER
	default:
		return -EINVAL;
	}
	isb();
	request->value = value;
	return 0;
}

static void ipi_count(void *count)
{
	atomic_inc(count);
}

/* Has every CPU run a function; the value is how many did. */
static int attack_ipi(struct flexattack_register *request)
{
	atomic_t count = ATOMIC_INIT(0);

	on_each_cpu(ipi_count, &count, 1);
	request->value = atomic_read(&count);
	return 0;
}
