//! Entry and exception vectors.
//!
//! The hypervisor enters with the MMU off, at EL1 with SP_EL1, and all registers zero. Memory is clean to the point of
//! coherency, and nothing is written before the MMU is on. `partition_main` gets x28 and x29 as arguments: they are zero
//! unless an image's preamble (section `.text.preamble`, the probe has one) put something there.
//!
//! The other vCPUs start at `secondary_entry`, by PSCI CPU_ON, with the endpoint's id in x0; each has a stack of its own
//! above pages that are never given, and `partition_secondary` gets its index.
//!
//! No exception is expected: interrupts stay masked, they are the hypervisor's business. A vector therefore ends the
//! partition by the PANIC operation, using registers only, since the stack may be what is broken. It reports the hash of
//! the word `exception` and, as the line, the exception class in bits 63:56, the vector's number in 55:48 and ELR below.

use core::arch::global_asm;
use hyp_abi::ffa;
use hyp_abi::service::op;

use super::tables;
use crate::fnv1a;

/// Distance from the top of one vCPU's stack to that of the next; `link.ld` says the same.
const STACK_STRIDE_LOG2: u32 = 16;

global_asm!(
    r#"
    .section .text.boot, "ax"
    .global entry
entry:
    bl      set_up
    adrp    x0, stack_top
    add     x0, x0, :lo12:stack_top
    mov     sp, x0
    mov     x0, x28
    mov     x1, x29
    mov     x29, xzr
    mov     x30, xzr
    b       partition_main

    .global secondary_entry
secondary_entry:
    msr     tpidr_el1, x0
    bl      set_up
    mrs     x0, mpidr_el1
    and     x0, x0, #0xff
    adrp    x1, stack_top
    add     x1, x1, :lo12:stack_top
    add     x1, x1, x0, lsl #{stride}
    mov     sp, x1
    mov     x29, xzr
    mov     x30, xzr
    b       partition_secondary

// Turns stage 1 and SIMD on. Clobbers x0 to x2.
set_up:
    msr     daifset, #15
    mov     x0, #(3 << 20)
    msr     cpacr_el1, x0
    adrp    x0, vectors
    add     x0, x0, :lo12:vectors
    msr     vbar_el1, x0

    ldr     x0, ={mair}
    msr     mair_el1, x0
    ldr     x0, ={tcr}
    mrs     x1, id_aa64mmfr0_el1
    and     x1, x1, #15
    mov     x2, #5
    cmp     x1, x2
    csel    x1, x1, x2, lo
    orr     x0, x0, x1, lsl #32
    msr     tcr_el1, x0
    adrp    x0, stage1_tables
    msr     ttbr0_el1, x0
    isb
    tlbi    vmalle1
    ic      iallu
    dsb     nsh
    isb
    ldr     x0, ={sctlr}
    msr     sctlr_el1, x0
    isb

    msr     fpcr, xzr
    msr     fpsr, xzr
    ret
    .ltorg

    .section .text.vectors, "ax"
    .balign 2048
vectors:
    .set    number, 0
    .rept   16
    .balign 128
    mov     x3, #number
    b       exception
    .set    number, number + 1
    .endr

exception:
    mrs     x5, elr_el1
    bfi     x5, x3, #48, #8
    mrs     x4, esr_el1
    lsr     x4, x4, #26
    bfi     x5, x4, #56, #8
    ldr     x4, ={hash}
    ldr     x0, ={request}
    mrs     x1, tpidr_el1
    mov     x2, #{service}
    orr     x1, x2, x1, lsl #16
    mov     x2, xzr
    mov     x3, #{panic}
    mov     x6, xzr
    mov     x7, xzr
    smc     #0
1:  wfi
    b       1b
    .ltorg
    "#,
    stride = const STACK_STRIDE_LOG2,
    mair = const tables::MAIR,
    tcr = const tables::TCR,
    sctlr = const tables::SCTLR,
    hash = const fnv1a("exception"),
    request = const ffa::MSG_SEND_DIRECT_REQ_64,
    service = const ffa::SERVICE_ID,
    panic = const op::PANIC,
);
