//! Runs before the boot code: notes which registers were not zero, general-purpose ones in x28 (a bit each), SIMD ones
//! in x29. Uses TPIDR_EL1 and TPIDRRO_EL0 to keep x28 and x29 meanwhile.

core::arch::global_asm!(
    r#"
    .section .text.preamble, "ax"
preamble:
    msr     tpidr_el1, x28
    msr     tpidrro_el0, x29
    mov     x28, xzr
    mov     x29, xzr
    .irp    n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,30
    cbz     x\n, 1f
    orr     x28, x28, #(1 << \n)
1:
    .endr
    mrs     x0, tpidr_el1
    cbz     x0, 1f
    orr     x28, x28, #(1 << 28)
1:  mrs     x0, tpidrro_el0
    cbz     x0, 1f
    orr     x28, x28, #(1 << 29)
1:  mov     x0, #(3 << 20)
    msr     cpacr_el1, x0
    isb
    .irp    n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    umov    x0, v\n\().d[0]
    umov    x1, v\n\().d[1]
    orr     x0, x0, x1
    cbz     x0, 1f
    orr     x29, x29, #(1 << \n)
1:
    .endr
    msr     tpidr_el1, xzr
    msr     tpidrro_el0, xzr
    b       entry
    "#
);
