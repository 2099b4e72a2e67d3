// SPDX-License-Identifier: GPL-2.0
/*
 * Host driver of the flexserve hypervisor: allocates pages, gives them to partitions, runs vCPUs, and takes every
 * page back. It decides nothing: the hypervisor checks all of it, user space (flexserve.h) drives it.
 *
 * A given page stays allocated until the hypervisor has returned it, because Linux would otherwise reuse memory that
 * it cannot touch. A page that the hypervisor does not return is leaked on purpose, and counted.
 *
 * Locks: flex_vm.sem, then flex_vm.work, then rxtx_lock. sem is held shared by what may happen while a vCPU runs,
 * exclusively by what may not; work by all but RUN, INFO and mmap. mmap only tries sem, since it comes with mmap_lock
 * held, which GIVE takes inside.
 *
 * The hypervisor signals by an interrupt that a vCPU may have something to do. It is a hint: sleeping vCPUs are looked
 * at ten times a second anyway.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <asm/arch_timer.h>
#include <linux/arm-smccc.h>
#include <linux/cpuhotplug.h>
#include <linux/delay.h>
#include <linux/hrtimer.h>
#include <linux/interrupt.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/of.h>
#include <linux/of_irq.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/sort.h>
#include <linux/uaccess.h>
#include <linux/xarray.h>

#include "flexserve.h"
#include "internal.h"

/* FF-A 1.2 (DEN0077A) and the vendor service, as hyp/abi/src/ffa.rs and service.rs define them. */
#define FFA_ERROR 0x84000060
#define FFA_SUCCESS 0x84000061
#define FFA_INTERRUPT 0x84000062
#define FFA_VERSION 0x84000063
#define FFA_FEATURES 0x84000064
#define FEATURE_SCHEDULE_RECEIVER 2
#define FFA_RX_RELEASE 0x84000065
#define FFA_RXTX_MAP 0xC4000066
#define FFA_RXTX_UNMAP 0x84000067
#define FFA_MSG_WAIT 0x8400006B
#define FFA_YIELD 0x8400006C
#define FFA_RUN 0x8400006D
#define FFA_DIRECT_REQ 0xC400006F
#define FFA_DIRECT_RESP 0xC4000070
#define VERSION_1_2 0x00010002
#define SERVICE_ID 0x8001
enum { OP_INFO, OP_TABLES_GIVE, OP_TABLES_RECALL };
enum { OP_CREATE = 0x10, OP_GIVE, OP_MEASURE, OP_START, OP_STOP, OP_RECALL, OP_DESTROY, OP_STATS };
enum { OP_LOG = 0x30 };
enum { NOT_SUPPORTED = -1, NO_MEMORY = -3, DENIED = -6, ABORTED = -8 };

#define STEP_ORDER 9
#define STEP_PAGES (1U << STEP_ORDER)
#define MAX_RANGES 256
#define MEASUREMENT_SIZE 48
#define IPA_PAGES (1ULL << (39 - PAGE_SHIFT))
/* Patience with a busy hypervisor, and with one that asks for table memory again and again. */
#define BUSY_SECONDS 10
#define TABLE_ROUNDS 64
/* A sleeping vCPU is looked at again after this fraction of a second. */
#define SLEEPS_PER_SECOND 10

struct flex_range {
	u64 base;
	u64 page_count;
};
static_assert(PAGE_SIZE == MAX_RANGES * sizeof(struct flex_range));

struct flex_vm {
	struct rw_semaphore sem;
	struct mutex work;		/* guards batch and list */
	bool ending;			/* RUN must come out */
	bool used;			/* CREATE succeeded once */
	bool started;
	u16 id;				/* 0: no partition */
	struct xarray pages;		/* IPA / PAGE_SIZE -> given page; PageOffline unless mappable */
	struct page *batch[STEP_PAGES];
	struct flex_range list[MAX_RANGES];	/* what goes to TX, and what came in RX */
};

static u64 flex_info[6];		/* the first outputs of FLEXSERVE_INFO */
static atomic64_t partitions, pages_held, tables_held, pages_leaked;
static atomic_t open_count, signals;
static DECLARE_WAIT_QUEUE_HEAD(sleepers);	/* threads of vCPUs */
static DEFINE_PER_CPU(int, flex_cookie);
static int flex_irq, flex_online;	/* 0: the hypervisor does not signal */
static DEFINE_MUTEX(rxtx_lock);		/* guards all below */
static struct flex_range *rx, *tx;
static struct page *table_pages[MAX_RANGES];

static struct arm_smccc_1_2_regs flex_smc(u64 a0, u64 a1, u64 a2, u64 a3)
{
	struct arm_smccc_1_2_regs regs = { .a0 = a0, .a1 = a1, .a2 = a2, .a3 = a3 };

	arm_smccc_1_2_smc(&regs, &regs);
	return regs;
}

int flex_errno(s32 status)
{
	static const int errnos[] = { 0, -EOPNOTSUPP, -EINVAL, -ENOMEM, -EBUSY, -EBUSY, -EACCES, -EBUSY, -ESHUTDOWN, -ENODATA };

	return status <= 0 && status > -(int)ARRAY_SIZE(errnos) ? errnos[-status] : -EIO;
}

static int compare_pages(const void *a, const void *b)
{
	unsigned long x = page_to_pfn(*(struct page **)a), y = page_to_pfn(*(struct page **)b);

	return x < y ? -1 : x > y;
}

static void flex_free(struct page **pages, unsigned int count)
{
	for (; count--; pages++) {
		if (PageOffline(*pages))
			__ClearPageOffline(*pages);
		put_page(*pages);	/* mappings, if any, keep it until they go */
	}
}

/*
 * Allocates count pages in ascending order, or none. Rather fails than wakes the OOM killer. A whole step comes in one
 * piece where there is one: as a block, it costs CPU and SMMU one translation instead of STEP_PAGES.
 */
static int flex_alloc(struct page **pages, unsigned int count, gfp_t flags, bool offline)
{
	gfp_t gfp = GFP_HIGHUSER | __GFP_ACCOUNT | __GFP_NOWARN | flags;
	struct page *piece = count == STEP_PAGES ? alloc_pages(gfp | __GFP_NORETRY, STEP_ORDER) : NULL;

	if (piece)
		split_page(piece, STEP_ORDER);
	for (unsigned int i = 0; i < count; i++) {
		pages[i] = piece ? piece + i : alloc_page(gfp | __GFP_RETRY_MAYFAIL);
		if (!pages[i]) {
			flex_free(pages, i);
			return -ENOMEM;
		}
		if (offline)	/* keeps /proc/kcore, hibernation and crash dumps away from it */
			__SetPageOffline(pages[i]);
	}
	if (!piece)
		sort(pages, count, sizeof(*pages), compare_pages, NULL);
	return 0;
}

/* Writes pages as ranges until either ends. Returns the ranges; *taken says how many pages they hold. */
static unsigned int flex_ranges(struct page **pages, unsigned int count, struct flex_range *list, unsigned int *taken)
{
	unsigned int i, n = 0;

	for (i = 0; i < count; i++) {
		u64 base = page_to_phys(pages[i]);

		if (n && list[n - 1].base + list[n - 1].page_count * PAGE_SIZE == base)
			list[n - 1].page_count++;
		else if (n < MAX_RANGES)
			list[n++] = (struct flex_range){ .base = base, .page_count = 1 };
		else
			break;
	}
	*taken = i;
	return n;
}

static void flex_results(u64 *out, const struct arm_smccc_1_2_regs *regs)
{
	out[0] = regs->a4;
	out[1] = regs->a5;
	out[2] = regs->a6;
	out[3] = regs->a7;
}

/* One message to the service. Returns its status; out gets x4-x7. */
s32 flex_message(u64 *out, u64 op, u64 a, u64 b, u64 c)
{
	struct arm_smccc_1_2_regs regs = { .a0 = FFA_DIRECT_REQ, .a1 = SERVICE_ID, .a3 = op, .a4 = a, .a5 = b, .a6 = c };

	arm_smccc_1_2_smc(&regs, &regs);
	flex_results(out, &regs);
	return regs.a0 == FFA_DIRECT_RESP ? regs.a3 : (u32)regs.a0 == FFA_ERROR && (s32)regs.a2 ? regs.a2 : NOT_SUPPORTED;
}

/* Gives pages for page tables. They are the hypervisor's until TABLES_RECALL names them. */
static int flex_tables_give(u64 wanted)
{
	unsigned int taken, count = clamp_t(u64, wanted, 1, MAX_RANGES);
	int ret = flex_alloc(table_pages, count, __GFP_ZERO, true);
	u64 out[4];

	if (ret)
		return ret;
	ret = flex_errno(flex_message(out, OP_TABLES_GIVE, flex_ranges(table_pages, count, tx, &taken), 0, 0));
	if (ret)
		flex_free(table_pages, count);
	else
		atomic64_add(count, &tables_held);
	return ret;
}

/*
 * Calls the service: gives table memory when asked for it, waits while the service is busy. size bytes of vm->list
 * go to TX; what comes in RX goes to vm->list. Other results are req's first four outputs.
 */
static int flex_call(struct flex_vm *vm, struct flexserve_request *req, u64 op, u64 a, u64 b, u64 c, size_t size)
{
	unsigned long deadline = jiffies + BUSY_SECONDS * HZ;
	int rounds = 0, ret;

	guard(mutex)(&rxtx_lock);
	for (;;) {
		memcpy(tx, vm->list, size);
		req->status = flex_message(req->out, op, a, b, c);
		req->detail = req->status ? req->out[0] : 0;
		ret = flex_errno(req->status);
		if (req->status == NO_MEMORY) {
			ret = ++rounds > TABLE_ROUNDS ? -ENOMEM : flex_tables_give(req->out[0]);
			if (!ret)
				continue;
		}
		if (ret != -EBUSY || time_after(jiffies, deadline))
			break;
		usleep_range(50, 200);
	}
	if (!ret && (op == OP_STATS || (op == OP_TABLES_RECALL && req->out[0]) || (op == OP_MEASURE && !req->out[0]) ||
		     (op == OP_LOG && req->out[0]))) {
		memcpy(vm->list, rx, PAGE_SIZE);
		flex_smc(FFA_RX_RELEASE, 0, 0, 0);
	}
	return ret;
}

static void flex_tables_recall(struct flex_vm *vm)
{
	struct flexserve_request req;
	struct page *page;

	while (!flex_call(vm, &req, OP_TABLES_RECALL, STEP_PAGES, 0, 0, 0) && req.out[0]) {
		for (u64 i = 0; i < min_t(u64, req.out[0], MAX_RANGES); i++) {
			for (u64 j = 0; j < min_t(u64, vm->list[i].page_count, STEP_PAGES); j++) {
				page = pfn_to_online_page(PHYS_PFN(vm->list[i].base) + j);
				if (!page || !PageOffline(page))
					continue;	/* never given: not ours to free */
				flex_free(&page, 1);
				atomic64_dec(&tables_held);
			}
		}
	}
}

/* Frees the pages at count IPAs from index on. The hypervisor does not hold them (any more). Returns how many. */
static u64 flex_drop(struct flex_vm *vm, unsigned long index, u64 count)
{
	unsigned long end = index + count;
	struct page *page;
	u64 dropped = 0;

	for (; index < end && (page = xa_find(&vm->pages, &index, end - 1, XA_PRESENT)); dropped++) {
		xa_erase(&vm->pages, index);
		flex_free(&page, 1);
	}
	return dropped;
}

static bool flex_bad_range(struct flexserve_request *req)
{
	return !PAGE_ALIGNED(req->in[0]) || req->in[0] / PAGE_SIZE > IPA_PAGES || req->in[1] > IPA_PAGES - req->in[0] / PAGE_SIZE;
}

static int flex_create(struct flex_vm *vm, struct flexserve_request *req)
{
	int ret;

	if (vm->used)
		return -EEXIST;
	if (req->in[1] > sizeof(vm->list))
		return -EINVAL;
	if (copy_from_user(vm->list, u64_to_user_ptr(req->in[0]), req->in[1]))
		return -EFAULT;
	ret = flex_call(vm, req, OP_CREATE, req->in[1], 0, 0, req->in[1]);
	if (ret)
		return ret;
	vm->used = true;
	vm->id = req->out[0];
	atomic64_inc(&partitions);
	return 0;
}

/* Gives count pages, at most STEP_PAGES. Adds those given to *given, also on error. */
static int flex_give_step(struct flex_vm *vm, struct flexserve_request *req, u64 index, u64 contents, unsigned int count, u64 *given)
{
	unsigned int i, ranges, taken, stored = 0, done = 0;
	int ret = flex_alloc(vm->batch, count, contents ? 0 : __GFP_ZERO, !(req->in[3] & FLEXSERVE_GIVE_MAPPABLE));

	if (ret)
		return ret;
	/* Recorded before the hypervisor has them, since afterwards nothing may fail. */
	for (; !ret && stored < count; stored += !ret) {
		ret = xa_insert(&vm->pages, index + stored, vm->batch[stored], GFP_KERNEL);
		if (ret == -EBUSY)
			ret = -EEXIST;
	}
	for (i = 0; !ret && contents && i < count; i++)
		if (copy_from_user(page_address(vm->batch[i]), u64_to_user_ptr(contents + i * PAGE_SIZE), PAGE_SIZE))
			ret = -EFAULT;
	while (!ret && done < count) {
		ranges = flex_ranges(vm->batch + done, count - done, vm->list, &taken);
		ret = flex_call(vm, req, OP_GIVE, vm->id, (index + done) * PAGE_SIZE, ranges, ranges * sizeof(*vm->list));
		done += ret ? 0 : taken;
	}
	/* All or nothing holds for each call: the rest is still the host's. */
	flex_free(vm->batch + stored, count - stored);
	flex_drop(vm, index + done, stored - done);
	atomic64_add(done, &pages_held);
	*given += done;
	return ret;
}

static int flex_give(struct flex_vm *vm, struct flexserve_request *req)
{
	u64 index = req->in[0] / PAGE_SIZE, given = 0;
	int ret = 0;

	if (flex_bad_range(req) || req->in[3] & ~FLEXSERVE_GIVE_MAPPABLE)
		return -EINVAL;
	while (!ret && given < req->in[1]) {
		ret = fatal_signal_pending(current) ? -EINTR :
			flex_give_step(vm, req, index + given, req->in[2] ? req->in[2] + given * PAGE_SIZE : 0,
				       min_t(u64, STEP_PAGES - (index + given) % STEP_PAGES, req->in[1] - given), &given);
		cond_resched();
	}
	req->out[0] = given;
	return ret;
}

static int flex_measure(struct flex_vm *vm, struct flexserve_request *req)
{
	u64 left, steps = req->in[0] ?: U64_MAX;
	int ret;

	do {
		cond_resched();
		ret = fatal_signal_pending(current) ? -EINTR : flex_call(vm, req, OP_MEASURE, vm->id, 0, 0, 0);
		left = req->out[0];
	} while (!ret && left && --steps);
	if (!ret && !left)
		memcpy(req->out, vm->list, MEASUREMENT_SIZE);
	req->out[6] = left;
	return ret;
}

/* Sleeps until a value of the virtual counter or the next signal, for a while at most. False: a Unix signal came. */
static bool flex_sleep(struct flex_vm *vm, u64 until, u64 end, int seen)
{
	s64 hz = flex_info[5], ticks = until == U64_MAX ? hz : until - arch_timer_read_counter();
	s64 time = div64_s64(clamp(ticks, 0, hz / SLEEPS_PER_SECOND) * NSEC_PER_SEC, hz);

	time = min_t(s64, time, end - ktime_get_ns());
	return time <= 0 || wait_event_interruptible_hrtimeout(sleepers, READ_ONCE(vm->ending) ||
							       atomic_read(&signals) != seen, time) != -ERESTARTSYS;
}

static int flex_run(struct flex_vm *vm, struct flexserve_request *req)
{
	u64 end = ktime_get_ns() + (req->in[1] && req->in[1] < KTIME_MAX / 2 ? req->in[1] : KTIME_MAX / 2);
	struct arm_smccc_1_2_regs regs;
	int seen;

	if (req->in[0] > U16_MAX)
		return -EINVAL;
	for (;; cond_resched()) {
		if (signal_pending(current))
			return -EINTR;
		if (READ_ONCE(vm->ending) || ktime_get_ns() >= end) {
			req->out[0] = READ_ONCE(vm->ending) ? FLEXSERVE_EXIT_STOPPED : FLEXSERVE_EXIT_SLICE;
			return 0;
		}
		seen = atomic_read(&signals);	/* before it comes out, so that none is missed */
		regs = flex_smc(FFA_RUN, (u32)vm->id << 16 | req->in[0], 0, 0);
		if ((u32)regs.a0 == FFA_INTERRUPT)
			continue;
		/* Off; a partition that ended answers otherwise. */
		if ((u32)regs.a0 == FFA_ERROR && (s32)regs.a2 == DENIED && vm->started)
			regs = (struct arm_smccc_1_2_regs){ .a0 = FFA_YIELD, .a4 = FLEXSERVE_EXIT_TIMER, .a5 = U64_MAX };
		if ((u32)regs.a0 == FFA_YIELD && regs.a4 == FLEXSERVE_EXIT_TIMER) {
			if (!flex_sleep(vm, regs.a5, end, seen))
				return -EINTR;
			continue;
		}
		flex_results(req->out, &regs);
		if ((u32)regs.a0 == FFA_YIELD || (u32)regs.a0 == FFA_MSG_WAIT)
			return 0;
		req->status = (u32)regs.a0 == FFA_ERROR ? (s32)regs.a2 : NOT_SUPPORTED;
		/* Ends that RUN reports; a partition that ended before has no reason any more. */
		return req->status == ABORTED && regs.a4 >= FLEXSERVE_EXIT_FINISHED ? 0 : flex_errno(req->status) ?: -EIO;
	}
}

static int flex_start(struct flex_vm *vm, struct flexserve_request *req)
{
	int ret = flex_call(vm, req, OP_START, vm->id, 0, 0, 0);

	vm->started |= !ret;
	return ret;
}

static int flex_recall(struct flex_vm *vm, struct flexserve_request *req)
{
	unsigned long index = req->in[0] / PAGE_SIZE, end = index + req->in[1];
	u64 count, recalled = 0;
	int ret = flex_bad_range(req) ? -EINVAL : 0;

	while (!ret && index < end && xa_find(&vm->pages, &index, end - 1, XA_PRESENT)) {
		for (count = 1; count < STEP_PAGES && index + count < end && xa_load(&vm->pages, index + count);)
			count++;
		ret = fatal_signal_pending(current) ? -EINTR :
			flex_call(vm, req, OP_RECALL, vm->id, index * PAGE_SIZE, count, 0);
		if (!ret && (!req->out[0] || req->out[0] > count))
			ret = -EIO;
		if (!ret) {
			recalled += flex_drop(vm, index, req->out[0]);
			atomic64_sub(req->out[0], &pages_held);
			index += req->out[0];
		}
		cond_resched();
	}
	req->out[0] = recalled;
	return ret;
}

/*
 * Destroys the partition step by step. Pages are free when all of them are: a step does not say which. Bounded by the
 * pages, so not even a fatal signal interrupts it: closing the file would have to go on anyway.
 */
static int flex_destroy(struct flex_vm *vm, struct flexserve_request *req)
{
	int ret;

	do {
		cond_resched();
		ret = flex_call(vm, req, OP_DESTROY, vm->id, 0, 0, 0);
	} while (!ret && req->out[0]);
	if (ret)
		return ret;
	vm->id = 0;
	req->out[0] = flex_drop(vm, 0, IPA_PAGES);
	atomic64_dec(&partitions);
	atomic64_sub(req->out[0], &pages_held);
	return 0;
}

static int flex_stats(struct flex_vm *vm, struct flexserve_request *req)
{
	int ret = flex_call(vm, req, OP_STATS, req->in[0], 0, 0, 0);

	req->out[0] = min3(req->out[0], req->in[2], (u64)PAGE_SIZE);
	return ret ?: copy_to_user(u64_to_user_ptr(req->in[1]), vm->list, req->out[0]) ? -EFAULT : 0;
}

static int flex_log(struct flex_vm *vm, struct flexserve_request *req)
{
	int ret = flex_call(vm, req, OP_LOG, req->in[0], req->in[1], 0, 0);

	req->out[0] = min3(req->out[0], req->in[3], (u64)PAGE_SIZE);
	return ret ?: copy_to_user(u64_to_user_ptr(req->in[2]), vm->list, req->out[0]) ? -EFAULT : 0;
}

static int flex_get_info(struct flexserve_request *req)
{
	memcpy(req->out, flex_info, sizeof(flex_info));
	req->out[6] = atomic64_read(&partitions);
	req->out[7] = atomic64_read(&pages_held);
	req->out[8] = atomic64_read(&tables_held);
	req->out[9] = atomic64_read(&pages_leaked);
	return 0;
}

static int flex_handle(struct flex_vm *vm, unsigned int command, struct flexserve_request *req)
{
	if (!vm->id && command >= FLEXSERVE_RUN && command != FLEXSERVE_CREATE && command != FLEXSERVE_LOG)
		return -ENXIO;
	switch (command) {
	case FLEXSERVE_INFO:	return flex_get_info(req);
	case FLEXSERVE_RUN:	return flex_run(vm, req);
	case FLEXSERVE_STATS:	return flex_stats(vm, req);
	case FLEXSERVE_LOG:	return flex_log(vm, req);
	case FLEXSERVE_CREATE:	return flex_create(vm, req);
	case FLEXSERVE_GIVE:	return flex_give(vm, req);
	case FLEXSERVE_MEASURE:	return flex_measure(vm, req);
	case FLEXSERVE_START:	return flex_start(vm, req);
	case FLEXSERVE_STOP:	return flex_call(vm, req, OP_STOP, vm->id, 0, 0, 0);
	case FLEXSERVE_RECALL:	return flex_recall(vm, req);
	case FLEXSERVE_DESTROY:	return flex_destroy(vm, req);
	default:		return -ENOTTY;
	}
}

static long flex_ioctl(struct file *file, unsigned int command, unsigned long address)
{
	bool runs = command == FLEXSERVE_INFO || command == FLEXSERVE_RUN;
	bool shared = runs || command == FLEXSERVE_GIVE || command == FLEXSERVE_STATS || command == FLEXSERVE_LOG;
	struct flex_vm *vm = file->private_data;
	struct flexserve_request req;
	int ret = 0;

	if (_IOC_SIZE(command) != sizeof(req))
		return -ENOTTY;
	if (copy_from_user(&req, (void __user *)address, sizeof(req)))
		return -EFAULT;
	memset(req.out, 0, sizeof(req.out));
	req.detail = 0;
	req.status = 0;
	if (command == FLEXSERVE_STOP || command == FLEXSERVE_DESTROY) {
		WRITE_ONCE(vm->ending, true);
		wake_up_all(&sleepers);
		ret = down_write_killable(&vm->sem);
	} else if (!(shared ? down_read_trylock(&vm->sem) : down_write_trylock(&vm->sem))) {
		ret = -EBUSY;	/* rather than wait for a RUN, which may last for ever */
	}
	if (ret)
		return ret;
	if (!runs)
		ret = mutex_lock_killable(&vm->work);
	if (!ret) {
		ret = flex_handle(vm, command, &req);
		if (!runs)
			mutex_unlock(&vm->work);
	}
	if (shared)
		up_read(&vm->sem);
	else
		up_write(&vm->sem);
	return copy_to_user((void __user *)address, &req, sizeof(req)) ? -EFAULT : ret;
}

static int flex_mmap(struct file *file, struct vm_area_struct *vma)
{
	struct flex_vm *vm = file->private_data;
	int ret = 0;

	if (!(vma->vm_flags & VM_SHARED) || vma->vm_flags & VM_EXEC)
		return -EINVAL;
	if (!down_read_trylock(&vm->sem))
		return -EBUSY;
	/* VM_IO: the kernel must not touch the pages for others (core dump, ptrace): an abort there is an oops. */
	vm_flags_mod(vma, VM_IO | VM_DONTEXPAND | VM_DONTDUMP | VM_DONTCOPY, VM_MAYEXEC);
	for (unsigned long i = 0; !ret && i < vma_pages(vma); i++) {
		struct page *page = xa_load(&vm->pages, vma->vm_pgoff + i);

		ret = page && !PageOffline(page) ? vm_insert_page(vma, vma->vm_start + i * PAGE_SIZE, page) : -ENXIO;
	}
	up_read(&vm->sem);
	return ret;
}

static int flex_open(struct inode *inode, struct file *file)
{
	struct flex_vm *vm = kvzalloc(sizeof(*vm), GFP_KERNEL_ACCOUNT);

	if (!vm)
		return -ENOMEM;
	init_rwsem(&vm->sem);
	mutex_init(&vm->work);
	xa_init(&vm->pages);
	file->private_data = vm;
	atomic_inc(&open_count);
	return 0;
}

/* Runs when neither an ioctl nor a mapping uses the file any more. */
static int flex_release(struct inode *inode, struct file *file)
{
	struct flex_vm *vm = file->private_data;
	struct flexserve_request req = {};
	unsigned long index;
	struct page *page;

	if (vm->id && flex_destroy(vm, &req)) {
		xa_for_each(&vm->pages, index, page) {
			atomic64_dec(&pages_held);
			atomic64_inc(&pages_leaked);
		}
		atomic64_dec(&partitions);
		pr_err("partition 0x%x cannot be destroyed (%d): its pages leak\n", vm->id, req.status);
	}
	if (atomic_dec_and_test(&open_count))
		flex_tables_recall(vm);
	xa_destroy(&vm->pages);
	kvfree(vm);
	return 0;
}

static const struct file_operations flex_fops = {
	.owner = THIS_MODULE, .open = flex_open, .release = flex_release, .mmap = flex_mmap,
	.unlocked_ioctl = flex_ioctl, .compat_ioctl = compat_ptr_ioctl,
};
static struct miscdevice flex_device = { .minor = MISC_DYNAMIC_MINOR, .name = "flexserve", .fops = &flex_fops, .mode = 0600 };

/* Takes the message buffers back from the hypervisor; leaks them if it does not let go. */
static void flex_unmap(void)
{
	if ((u32)flex_smc(FFA_RXTX_UNMAP, 0, 0, 0).a0 == FFA_SUCCESS)
		free_pages((unsigned long)tx, 1);
	else
		pr_err("the hypervisor keeps the message buffers\n");
}

static irqreturn_t flex_signal(int irq, void *cookie)
{
	atomic_inc(&signals);
	wake_up_all(&sleepers);
	return IRQ_HANDLED;
}

static int flex_cpu_up(unsigned int cpu)
{
	enable_percpu_irq(flex_irq, IRQ_TYPE_NONE);
	return 0;
}

static int flex_cpu_down(unsigned int cpu)
{
	disable_percpu_irq(flex_irq);
	return 0;
}

static void flex_irq_exit(void)
{
	if (flex_online > 0)
		cpuhp_remove_state(flex_online);
	if (flex_irq > 0) {
		free_percpu_irq(flex_irq, &flex_cookie);
		irq_dispose_mapping(flex_irq);
	}
}

/* Takes the schedule receiver interrupt, an SGI. Without it sleeping vCPUs are looked at now and then. */
static void __init flex_irq_init(void)
{
	struct arm_smccc_1_2_regs regs = flex_smc(FFA_FEATURES, FEATURE_SCHEDULE_RECEIVER, 0, 0);
	struct of_phandle_args args = { .args_count = 1, .args = { regs.a2 } };

	args.np = (u32)regs.a0 == FFA_SUCCESS ? of_find_compatible_node(NULL, NULL, "arm,gic-v3") : NULL;
	if (!args.np)
		return;
	flex_irq = irq_create_of_mapping(&args);
	of_node_put(args.np);
	if (flex_irq > 0 && request_percpu_irq(flex_irq, flex_signal, KBUILD_MODNAME, &flex_cookie)) {
		irq_dispose_mapping(flex_irq);
		flex_irq = 0;
	}
	if (flex_irq > 0)
		flex_online = cpuhp_setup_state(CPUHP_AP_ONLINE_DYN, "flexserve:online", flex_cpu_up, flex_cpu_down);
}

static int __init flex_init(void)
{
	/* Where PSCI uses HVC or nothing, an SMC is undefined. */
	bool smc = arm_smccc_1_1_get_conduit() == SMCCC_CONDUIT_SMC;
	s32 version = smc ? (s32)flex_smc(FFA_VERSION, VERSION_1_2, 0, 0).a0 : NOT_SUPPORTED;
	int ret;

	if (version < 0 || version >> 16 != 1) {
		pr_err("no hypervisor: FFA_VERSION is not answered (%d)\n", version);
		return -ENODEV;
	}
	tx = (void *)__get_free_pages(GFP_KERNEL | __GFP_ZERO, 1);
	if (!tx)
		return -ENOMEM;
	rx = tx + MAX_RANGES;
	if ((u32)flex_smc(FFA_RXTX_MAP, virt_to_phys(tx), virt_to_phys(rx), 1).a0 != FFA_SUCCESS) {
		free_pages((unsigned long)tx, 1);
		return -EBUSY;
	}
	flex_info[0] = FLEXSERVE_API_VERSION;
	flex_info[1] = version;
	ret = flex_errno(flex_message(flex_info + 2, OP_INFO, 0, 0, 0));
	flex_irq_init();
	/* The same major version, and a clock to sleep by. */
	if (!ret)
		ret = flex_info[2] >> 16 != 1 || flex_info[5] < SLEEPS_PER_SECOND ? -EPROTO : misc_register(&flex_device);
	if (!ret && flex_npu_init())
		pr_err("no device for the NPU\n");
	if (ret) {
		pr_err("FF-A 0x%x without a flexserve service that this module knows (%d)\n", version, ret);
		flex_irq_exit();
		flex_unmap();
	}
	return ret;
}

static void __exit flex_exit(void)
{
	misc_deregister(&flex_device);
	flex_npu_exit();
	flex_irq_exit();
	if (atomic64_read(&tables_held))
		pr_err("%lld table pages stay with the hypervisor\n", atomic64_read(&tables_held));
	flex_unmap();
}

module_init(flex_init);
module_exit(flex_exit);
MODULE_DESCRIPTION("Confidential partitions under the flexserve hypervisor");
MODULE_LICENSE("GPL");
