// SPDX-License-Identifier: GPL-2.0
/*
 * A hostile host kernel, for the attack suite only: raw calls, raw accesses to physical addresses, pages whose
 * addresses user space knows. See flexserve_attack.h.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/arm-smccc.h>
#include <linux/io.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>

#include "flexserve_attack.h"

#define MAX_PAGES 1024

#include "cpu_state.c"

/* SMC with an immediate that is not 0. Only x0 counts: it must be refused. */
static u64 smc_1(u64 function)
{
	register u64 x0 asm("x0") = function;

	asm volatile("smc #1" : "+r" (x0) : :
		     "x1", "x2", "x3", "x4", "x5", "x6", "x7", "x8", "x9", "x10", "x11", "x12", "x13", "x14", "x15",
		     "x16", "x17", "memory");
	return x0;
}

static int attack_call(struct flexattack_call *call)
{
	struct arm_smccc_1_2_regs regs;

	static_assert(sizeof(regs) == sizeof(call->regs));
	memcpy(&regs, call->regs, sizeof(regs));
	switch (call->conduit) {
	case FLEXATTACK_SMC:
		arm_smccc_1_2_smc(&regs, &regs);
		break;
	case FLEXATTACK_HVC:
		arm_smccc_1_2_hvc(&regs, &regs);
		break;
	case FLEXATTACK_SMC_1:
		regs.a0 = smc_1(regs.a0);
		break;
	default:
		return -EINVAL;
	}
	memcpy(call->regs, &regs, sizeof(regs));
	return 0;
}

/* A page of code, alone in it. The kernel maps no page of data executable, but this one may be given. */
asm(".pushsection .text.flexserve_attack_page, \"ax\"\n"
    ".balign 4096\n"
    "flexserve_attack_page:\n"
    "	bti	c\n"
    "	mov	x0, #" __stringify(FLEXATTACK_CODE_RETURNS) "\n"
    "	ret\n"
    ".balign 4096\n"
    ".popsection");
u64 flexserve_attack_page(void);

/* Maps the page around an address; the mapping is never undone, since the task may not come back. */
static void *attack_map(u64 address, u32 map)
{
	u64 base = address & PAGE_MASK, offset = address & ~PAGE_MASK;
	void *start = NULL;

	if (map == FLEXATTACK_LINEAR)
		start = pfn_to_online_page(PHYS_PFN(base)) ? phys_to_virt(base) : NULL;
	else if (map == FLEXATTACK_CACHED)
		start = memremap(base, PAGE_SIZE, MEMREMAP_WB);
	else if (map == FLEXATTACK_DEVICE)
		start = (void __force *)ioremap(base, PAGE_SIZE);
	return start ? start + offset : NULL;
}

static u64 attack_read(const void *at, u32 width)
{
	switch (width) {
	case 1:
		return readb_relaxed((const void __iomem __force *)at);
	case 2:
		return readw_relaxed((const void __iomem __force *)at);
	case 4:
		return readl_relaxed((const void __iomem __force *)at);
	default:
		return readq_relaxed((const void __iomem __force *)at);
	}
}

static void attack_write(void *at, u32 width, u64 value)
{
	switch (width) {
	case 1:
		writeb_relaxed(value, (void __iomem __force *)at);
		break;
	case 2:
		writew_relaxed(value, (void __iomem __force *)at);
		break;
	case 4:
		writel_relaxed(value, (void __iomem __force *)at);
		break;
	default:
		writeq_relaxed(value, (void __iomem __force *)at);
	}
	/* An abort of the write belongs to this task. */
	mb();
}

static int attack_access(struct flexattack_access *access)
{
	u32 act = access->act & 0xff, width = access->act >> 8;
	void *at;

	if (act > FLEXATTACK_WRITE || !is_power_of_2(width) || width > 8)
		return -EINVAL;
	at = attack_map(access->address, access->map);
	if (!at)
		return -ENXIO;
	if (act == FLEXATTACK_READ)
		access->value = attack_read(at, width);
	else
		attack_write(at, width, access->value);
	return 0;
}

static int attack_code(struct flexattack_code *code, bool call)
{
	code->address = PFN_PHYS(vmalloc_to_pfn(flexserve_attack_page));
	if (call)
		code->value = flexserve_attack_page();
	return 0;
}

static int attack_alloc(struct flexattack_pages *pages)
{
	unsigned int order;
	struct page *page;

	if (!is_power_of_2(pages->count) || pages->count > MAX_PAGES)
		return -EINVAL;
	order = ilog2(pages->count);
	page = alloc_pages(GFP_KERNEL | __GFP_ZERO | __GFP_NOWARN, order);
	if (!page)
		return -ENOMEM;
	split_page(page, order);
	pages->address = page_to_phys(page);
	return 0;
}

static int attack_free(struct flexattack_pages *pages)
{
	if (!PAGE_ALIGNED(pages->address) || pages->count > MAX_PAGES)
		return -EINVAL;
	for (u64 i = 0; i < pages->count; i++) {
		struct page *page = pfn_to_online_page(PHYS_PFN(pages->address) + i);

		if (!page)
			return -EINVAL;
		put_page(page);		/* mappings, if any, keep it until they go */
	}
	return 0;
}

static long attack_ioctl(struct file *file, unsigned int command, unsigned long address)
{
	union {
		struct flexattack_call call;
		struct flexattack_access access;
		struct flexattack_pages pages;
		struct flexattack_code code;
		struct flexattack_register reg;
	} request;
	void __user *user = (void __user *)address;
	int ret;

	if (command == FLEXATTACK_STATE)
		return attack_state(user);
	if (_IOC_SIZE(command) > sizeof(request))
		return -ENOTTY;
	if (copy_from_user(&request, user, _IOC_SIZE(command)))
		return -EFAULT;
	switch (command) {
	case FLEXATTACK_CALL:
		ret = attack_call(&request.call);
		break;
	case FLEXATTACK_ACCESS:
		ret = attack_access(&request.access);
		break;
	case FLEXATTACK_ALLOC:
		ret = attack_alloc(&request.pages);
		break;
	case FLEXATTACK_FREE:
		ret = attack_free(&request.pages);
		break;
	case FLEXATTACK_CODE:
	case FLEXATTACK_CODE_CALL:
		ret = attack_code(&request.code, command == FLEXATTACK_CODE_CALL);
		break;
	case FLEXATTACK_REGISTER:
		ret = attack_register(&request.reg);
		break;
	case FLEXATTACK_IPI:
		ret = attack_ipi(&request.reg);
		break;
	default:
		return -ENOTTY;
	}
	return ret ?: copy_to_user(user, &request, _IOC_SIZE(command)) ? -EFAULT : 0;
}

static int attack_mmap(struct file *file, struct vm_area_struct *vma)
{
	int ret = 0;

	if (!(vma->vm_flags & VM_SHARED))
		return -EINVAL;
	vm_flags_set(vma, VM_IO | VM_DONTEXPAND | VM_DONTDUMP);
	for (unsigned long i = 0; !ret && i < vma_pages(vma); i++) {
		struct page *page = pfn_to_online_page(vma->vm_pgoff + i);

		ret = page ? vm_insert_page(vma, vma->vm_start + i * PAGE_SIZE, page) : -ENXIO;
	}
	return ret;
}

static const struct file_operations attack_fops = {
	.owner = THIS_MODULE, .unlocked_ioctl = attack_ioctl, .mmap = attack_mmap,
};
static struct miscdevice attack_device = {
	.minor = MISC_DYNAMIC_MINOR, .name = "flexserve_attack", .fops = &attack_fops, .mode = 0600,
};
module_misc_device(attack_device);
MODULE_DESCRIPTION("Attacks on flexserve partitions from the host kernel, for tests only");
MODULE_LICENSE("GPL");
