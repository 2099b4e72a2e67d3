// SPDX-License-Identifier: GPL-2.0
/*
 * /dev/flexserve-npu: the NPU for one program of the host's at a time. The hypervisor decides who owns it; this module
 * hands out its registers and memory that it may reach, and makes sure that it reaches none of it after the file is
 * closed: memory is freed when the device was reset, and leaked on purpose otherwise.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": npu: " fmt

#include <linux/delay.h>
#include <linux/io.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "flexserve.h"
#include "internal.h"

enum { OP_NPU_STATE = 0x40, OP_NPU_ACQUIRE, OP_NPU_RELEASE };
#define DEVICE_STATUS 0x14	/* in virtio's common configuration */
#define RESET_MS 5000

struct npu_memory {
	struct list_head list;
	void *address;
	size_t size;
};

static unsigned long npu_open_bit;
static DEFINE_MUTEX(npu_lock);	/* guards npu_memory */
static LIST_HEAD(npu_memory);
static u64 npu_info[4];		/* what NPU_STATE said when the module was loaded */
static bool npu_present;

static u64 npu_pages(void)
{
	return npu_info[3] >> 32;
}

static int npu_call(struct flexserve_request *req)
{
	u64 op = OP_NPU_STATE + req->in[0];

	if (req->in[0] > OP_NPU_RELEASE - OP_NPU_STATE)
		return -EINVAL;
	for (;;) {
		req->status = flex_message(req->out, op, 0, 0, 0);
		if (flex_errno(req->status) != -EBUSY || op != OP_NPU_ACQUIRE)
			return flex_errno(req->status);
		/* Another holds it, and has been asked to release it. */
		usleep_range(500, 1000);
		if (signal_pending(current))
			return -EINTR;
	}
}

static int npu_allocate(struct flexserve_request *req)
{
	struct npu_memory *memory;
	size_t size = PAGE_ALIGN(req->in[0]);

	if (!req->in[0] || req->in[0] > FLEXSERVE_NPU_MEMORY_MAX)
		return -EINVAL;
	memory = kmalloc(sizeof(*memory), GFP_KERNEL_ACCOUNT);
	if (!memory)
		return -ENOMEM;
	memory->size = size;
	memory->address = alloc_pages_exact(size, GFP_KERNEL_ACCOUNT | __GFP_ZERO | __GFP_NOWARN);
	if (!memory->address) {
		kfree(memory);
		return -ENOMEM;
	}
	mutex_lock(&npu_lock);
	list_add(&memory->list, &npu_memory);
	mutex_unlock(&npu_lock);
	req->out[0] = virt_to_phys(memory->address);
	req->out[1] = FLEXSERVE_NPU_MEMORY_OFFSET + req->out[0];
	return 0;
}

static long npu_ioctl(struct file *file, unsigned int command, unsigned long address)
{
	struct flexserve_request req;
	int ret;

	if (_IOC_SIZE(command) != sizeof(req))
		return -ENOTTY;
	if (copy_from_user(&req, (void __user *)address, sizeof(req)))
		return -EFAULT;
	memset(req.out, 0, sizeof(req.out));
	req.detail = 0;
	req.status = 0;
	switch (command) {
	case FLEXSERVE_NPU:		ret = npu_call(&req); break;
	case FLEXSERVE_NPU_MEMORY:	ret = npu_allocate(&req); break;
	default:			return -ENOTTY;
	}
	return copy_to_user((void __user *)address, &req, sizeof(req)) ? -EFAULT : ret;
}

static int npu_mmap(struct file *file, struct vm_area_struct *vma)
{
	u64 offset = (u64)vma->vm_pgoff << PAGE_SHIFT, size = vma->vm_end - vma->vm_start;
	struct npu_memory *memory;
	int ret = -ENXIO;

	if (!(vma->vm_flags & VM_SHARED) || vma->vm_flags & VM_EXEC)
		return -EINVAL;
	vm_flags_mod(vma, VM_IO | VM_DONTEXPAND | VM_DONTDUMP | VM_DONTCOPY, VM_MAYEXEC);
	if (!offset) {
		if (size > npu_pages() * PAGE_SIZE)
			return -ENXIO;
		/* While another owns the NPU, loads find all ones and stores do nothing. */
		vma->vm_page_prot = pgprot_device(vma->vm_page_prot);
		return io_remap_pfn_range(vma, vma->vm_start, PHYS_PFN(npu_info[1]), size, vma->vm_page_prot);
	}
	mutex_lock(&npu_lock);
	list_for_each_entry(memory, &npu_memory, list)
		if (offset == FLEXSERVE_NPU_MEMORY_OFFSET + virt_to_phys(memory->address) && size <= memory->size)
			ret = remap_pfn_range(vma, vma->vm_start, PHYS_PFN(virt_to_phys(memory->address)), size,
					      vma->vm_page_prot);
	mutex_unlock(&npu_lock);
	return ret;
}

/* Stops the device for good, or until the next user; true if it surely does nothing any more. */
static bool npu_reset(void)
{
	void __iomem *registers = ioremap(npu_info[1], npu_pages() * PAGE_SIZE);
	void __iomem *status = registers + (npu_info[2] & 0xffff) + DEVICE_STATUS;
	u8 value = 1;

	if (!registers)
		return false;
	writeb(0, status);
	for (int ms = 0; ms < RESET_MS; ms++) {
		value = readb(status);
		if (!value || value == 0xff)	/* all ones: another owns it, and it was reset in between */
			break;
		msleep(1);
	}
	iounmap(registers);
	return !value || value == 0xff;
}

static int npu_file_open(struct inode *inode, struct file *file)
{
	return test_and_set_bit(0, &npu_open_bit) ? -EBUSY : 0;
}

/* No mapping is left by now. */
static int npu_file_release(struct inode *inode, struct file *file)
{
	struct npu_memory *memory, *next;
	bool stopped = npu_reset();
	u64 out[4];

	flex_message(out, OP_NPU_RELEASE, 0, 0, 0);	/* refused if it is not held */
	if (!stopped)
		pr_err("it does not stop: the memory that it may reach leaks\n");
	list_for_each_entry_safe(memory, next, &npu_memory, list) {
		if (stopped)
			free_pages_exact(memory->address, memory->size);
		list_del(&memory->list);
		kfree(memory);
	}
	clear_bit(0, &npu_open_bit);
	return 0;
}

static const struct file_operations npu_fops = {
	.owner = THIS_MODULE, .open = npu_file_open, .release = npu_file_release, .mmap = npu_mmap,
	.unlocked_ioctl = npu_ioctl, .compat_ioctl = compat_ptr_ioctl,
};
static struct miscdevice npu_device = { .minor = MISC_DYNAMIC_MINOR, .name = "flexserve-npu", .fops = &npu_fops, .mode = 0600 };

/* A machine without an NPU has no device, and that is no error. */
int flex_npu_init(void)
{
	int ret = flex_errno(flex_message(npu_info, OP_NPU_STATE, 0, 0, 0));

	if (ret || !npu_pages())
		return 0;
	ret = misc_register(&npu_device);
	npu_present = !ret;
	return ret;
}

void flex_npu_exit(void)
{
	if (npu_present)
		misc_deregister(&npu_device);
}
