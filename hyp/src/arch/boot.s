// Entry of the image: arm64 Image header, bundle header, start of the first CPU and of the others.

.section .head, "ax"
.global image_header
image_header:
    b       primary_entry           // code0
    .word   0                       // code1
    .quad   0                       // text_offset: the 2 MiB boundary itself
    .quad   image_end - . + 16      // image_size; the packer raises it to the whole bundle
    .quad   0xa                     // flags: little-endian, 4 KiB pages, anywhere in memory
    .quad   0, 0, 0
    .ascii  "ARM\x64"
    .word   0
// hyp_abi::bundle::BundleHeader, at offset 64; the packer fills the rest.
.global bundle_header
bundle_header:
    .ascii  "FLEXBNDL"
    .word   1, 0
    .quad   image_end - . + 80      // hypervisor_size
    .space  48 + 2048

.section .text.boot, "ax"
// x0 = physical address of the device tree; MMU off, interrupts masked (booting.rst).
primary_entry:
    msr     daifset, #0xf
    mov     x21, x0
    mrs     x1, CurrentEL
    cmp     x1, #8                  // EL2
    b.ne    park
    adrp    x20, image_header       // linked at 0: where we are is the offset
    // Everything below runs with the MMU off: writes go to memory.
    adrp    x1, bss_start
    add     x1, x1, :lo12:bss_start
    adrp    x2, stacks_end
    add     x2, x2, :lo12:stacks_end
1:  stp     xzr, xzr, [x1], #16
    cmp     x1, x2
    b.lo    1b
    adrp    x1, rela_start
    add     x1, x1, :lo12:rela_start
    adrp    x2, rela_end
    add     x2, x2, :lo12:rela_end
2:  cmp     x1, x2
    b.hs    3f
    ldp     x3, x4, [x1], #16       // where, type
    ldr     x5, [x1], #8            // addend
    cmp     w4, #1027               // R_AARCH64_RELATIVE, the only kind in a static PIE
    b.ne    park
    add     x5, x5, x20
    str     x5, [x3, x20]
    b       2b
3:  dsb     sy
    ic      iallu
    dsb     sy
    isb
    mov     x0, #0
    bl      set_up_cpu
    mov     x0, x21
    mov     x1, x20
    bl      primary_main
park:
    wfe
    b       park

// x0 = index of this CPU, as we passed it to PSCI CPU_ON.
.global secondary_entry
secondary_entry:
    msr     daifset, #0xf
    mov     x19, x0
    bl      set_up_cpu
    mov     x0, x19
    bl      enable_stage1
    mov     x0, x19
    bl      secondary_main
    b       park

// The entry that the SPMD has for us: which CPU this is, its MPIDR says. The MMU is off, or, if the CPU was on before, as it
// was then: the map is an identity map.
.global spmc_secondary_entry
spmc_secondary_entry:
    msr     daifset, #0xf
    mrs     x1, mpidr_el1
    mov     x2, #0xffffff
    movk    x2, #0xff, lsl #32
    and     x1, x1, x2
    adrp    x2, AFFINITIES
    add     x2, x2, :lo12:AFFINITIES
    mov     x0, #0
1:  cmp     x0, #{MAX_CPUS}
    b.hs    park
    ldr     x3, [x2, x0, lsl #3]
    cmp     x1, x3
    b.eq    secondary_entry
    add     x0, x0, #1
    b       1b

// x0 = index: stack, vectors, per-CPU number. Clobbers x1-x3.
set_up_cpu:
    msr     tpidr_el2, x0
    adrp    x1, stacks_start
    add     x1, x1, :lo12:stacks_start
    mov     x2, #{STACK_STRIDE}
    madd    x1, x0, x2, x1
    add     x1, x1, x2
    msr     spsel, #1
    mov     sp, x1
    adrp    x1, host_vectors
    add     x1, x1, :lo12:host_vectors
    msr     vbar_el2, x1
    isb
    ret

// Turns stage 1 on with the values in STAGE1 (root, MAIR, TCR, SCTLR). Identity map: we go on at the same address.
.global enable_stage1
enable_stage1:
    adrp    x1, STAGE1
    add     x1, x1, :lo12:STAGE1
    ldp     x2, x3, [x1]
    ldp     x4, x5, [x1, #16]
    msr     ttbr0_el2, x2
    msr     mair_el2, x3
    msr     tcr_el2, x4
    isb
    tlbi    alle2
    dsb     nsh
    ic      iallu
    dsb     nsh
    isb
    msr     sctlr_el2, x5
    isb
    ret

// enter_host(x0: argument, x1: entry) -> !: drops to EL1 with the stack of this CPU empty again.
.global enter_host
enter_host:
    msr     elr_el2, x1
    mov     x1, #0x3c5              // EL1h, all masked
    msr     spsr_el2, x1
    mrs     x1, tpidr_el2
    adrp    x2, stacks_start
    add     x2, x2, :lo12:stacks_start
    mov     x3, #{STACK_STRIDE}
    madd    x2, x1, x3, x2
    add     x2, x2, x3
    mov     sp, x2
    mov     x1, xzr
    mov     x2, xzr
    mov     x3, xzr
    .irp n, 4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30
    mov     x\n, xzr
    .endr
    dsb     sy
    isb
    eret
