/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * /dev/flexserve: what user space asks of the flexserve module.
 *
 * An open file is the life of at most one partition. Closing the file, however the process ends, destroys the
 * partition and returns its pages. Every ioctl takes one struct flexserve_request; unused inputs are ignored.
 * Numbers of the hypervisor (status, manifest, exit reasons, statistics) are those of hyp/abi.
 *
 * Errors, as errno; "status" and "detail" say what the hypervisor said last:
 *   EBUSY    another thread is inside an ioctl of this file that excludes this one, or the hypervisor is busy
 *   ENOMEM   the host is out of memory
 *   EINTR    a signal; what was done stays done
 *   ENXIO    this file has no partition; mmap: a page that may not be mapped
 *   EEXIST   CREATE: this file had a partition already; GIVE: a page was given at this IPA already
 *   EFAULT   a bad address in the request
 *   EINVAL, EACCES, EOPNOTSUPP, ESHUTDOWN, ENODATA   the hypervisor (EINVAL, or the module) refused
 *   EIO      the hypervisor broke the protocol
 */
#ifndef _UAPI_FLEXSERVE_H
#define _UAPI_FLEXSERVE_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define FLEXSERVE_API_VERSION 1

/* 128 bytes, the same layout for 32- and 64-bit callers. Meaningful after success, and as said below after errors. */
struct flexserve_request {
	__s32 status;		/* out: FF-A status of the last call to the hypervisor, 0: success; also on error */
	__u32 reserved;
	__u64 detail;		/* out: what offended (an address, an index), or 0; also on error */
	__u64 in[4];
	__u64 out[10];
};

#define FLEXSERVE_IOC(nr) _IOWR(0xF5, nr, struct flexserve_request)

/*
 * out: 0 FLEXSERVE_API_VERSION, 1 FF-A version, 2 service version (versions: major << 16 | minor), 3 service flags,
 * 4 most partitions, 5 ticks per second; the module's counters: 6 partitions of all files, 7 pages that partitions
 * hold, 8 pages that page tables hold, 9 pages that did not come back and are never used again (a defect if not 0).
 */
#define FLEXSERVE_INFO FLEXSERVE_IOC(0)
/* Statistics. in: 0 for the system or the id of any partition, address and bytes of a buffer. out: bytes written. */
#define FLEXSERVE_STATS FLEXSERVE_IOC(1)
/*
 * Runs a vCPU in this thread until it needs user space, the time is over, or a signal comes (EINTR). A vCPU that sleeps or
 * is off (of a partition that was started) is waited for inside. in: vCPU, nanoseconds to stay at most (0: no limit).
 * out: reason, then details as hyp/abi run_exit says. Any number of threads may run different vCPUs at once.
 */
#define FLEXSERVE_RUN FLEXSERVE_IOC(2)
#define FLEXSERVE_EXIT_KICK 1
#define FLEXSERVE_EXIT_TIMER 2		/* not seen: slept inside RUN */
#define FLEXSERVE_EXIT_WAITING 3
#define FLEXSERVE_EXIT_FINISHED 4
#define FLEXSERVE_EXIT_CRASHED 5
#define FLEXSERVE_EXIT_STOPPED 6
#define FLEXSERVE_EXIT_SLICE 0x100	/* the time is over; the module's own */
/* Creates the partition, once in the file's life. in: address and bytes (at most 4096) of the manifest. out: id. */
#define FLEXSERVE_CREATE FLEXSERVE_IOC(3)
/*
 * Gives newly allocated pages at ascending IPAs, all in one region of the manifest. in: IPA of the first, pages,
 * address of their contents (4096 bytes each) or 0 for zero pages, flags. out: pages given, also on error. Zero pages
 * may be given while vCPUs run, as far as the hypervisor allows it.
 */
#define FLEXSERVE_GIVE FLEXSERVE_IOC(4)
#define FLEXSERVE_GIVE_MAPPABLE 1	/* mmap may map them: for regions that the partition shares */
/*
 * Measures what was given; afterwards no contents can be given. in: most steps of a few pages (0: all of them). out: if
 * out[6], the pages left, is 0, the SHA-384 in the first 48 bytes; else call again.
 */
#define FLEXSERVE_MEASURE FLEXSERVE_IOC(5)
/* Makes a measured partition runnable. */
#define FLEXSERVE_START FLEXSERVE_IOC(6)
/* Ends the partition, and a RUN that is under way. */
#define FLEXSERVE_STOP FLEXSERVE_IOC(7)
/* Takes pages back from a partition that cannot run. in: IPA, pages; what was not given is skipped. out: pages. */
#define FLEXSERVE_RECALL FLEXSERVE_IOC(8)
/* Stops and destroys the partition and takes all its pages back. out: pages. */
#define FLEXSERVE_DESTROY FLEXSERVE_IOC(9)
/*
 * What any partition logged. in: its id, position in bytes since its creation, address and bytes (4096) of a buffer.
 * out: bytes written, position of the first of them (later than asked for if the log has lost what was there).
 */
#define FLEXSERVE_LOG FLEXSERVE_IOC(16)

/*
 * /dev/flexserve-npu, for one program at a time: the NPU, where the machine has one.
 *
 * in: 0 asks, 1 acquires, 2 releases. Acquiring waits while a partition holds the NPU, which is asked to release it and loses
 * it after a while; EINTR: a signal came. out: as hyp/abi says of NPU_STATE.
 */
#define FLEXSERVE_NPU FLEXSERVE_IOC(17)
/* Allocates contiguous zeroed memory that the NPU reaches, until the file is closed. in: bytes. out: address for the NPU, mmap offset. */
#define FLEXSERVE_NPU_MEMORY FLEXSERVE_IOC(18)
#define FLEXSERVE_NPU_MEMORY_MAX (4U << 20)
/* mmap, MAP_SHARED: offset 0 are the registers, from here on the memory, by its address. */
#define FLEXSERVE_NPU_MEMORY_OFFSET (1ULL << 41)

/*
 * mmap of /dev/flexserve: the file offset is the IPA of the first page; every page must have been given with FLEXSERVE_GIVE_MAPPABLE;
 * MAP_SHARED, not executable. Until the partition has shared a page, a touch is a SIGBUS.
 */
#endif
