// Exception vectors. While the host runs, VBAR_EL2 is host_vectors and a frame of x0-x30 lies on the EL2 stack; while
// a partition runs it is guest_vectors and registers go to its context, as the return of enter_guest.

// x2-x29 at their places, 8 bytes each, from \base on.
.macro general op, base
    \op     x2, x3, [\base, #16]
    \op     x4, x5, [\base, #32]
    \op     x6, x7, [\base, #48]
    \op     x8, x9, [\base, #64]
    \op     x10, x11, [\base, #80]
    \op     x12, x13, [\base, #96]
    \op     x14, x15, [\base, #112]
    \op     x16, x17, [\base, #128]
    \op     x18, x19, [\base, #144]
    \op     x20, x21, [\base, #160]
    \op     x22, x23, [\base, #176]
    \op     x24, x25, [\base, #192]
    \op     x26, x27, [\base, #208]
    \op     x28, x29, [\base, #224]
.endm

.macro save_frame
    sub     sp, sp, #256
    stp     x0, x1, [sp]
    general stp, sp
    str     x30, [sp, #240]
.endm

.macro vector handler, number
    .balign 128
    save_frame
    mov     x0, sp
    mov     x1, #\number
    bl      \handler
    b       restore_frame
.endm

// A fault of our own is fatal: take the emergency stack of this CPU (the fault may be an overflow of the other).
.macro own_vector number
    .balign 128
    mrs     x1, tpidr_el2
    adrp    x0, EMERGENCY_STACKS
    add     x0, x0, :lo12:EMERGENCY_STACKS
    add     x1, x1, #1
    add     x0, x0, x1, lsl #12
    mov     sp, x0
    mov     x0, #\number
    b       own_exception
.endm

.section .text.vectors, "ax"
.balign 2048
.global host_vectors
host_vectors:
    // Current EL: our own fault, fatal.
    .irp n, 0,1,2,3,4,5,6,7
    own_vector \n
    .endr
    // Lower EL, AArch64 then AArch32: the host.
    vector  host_exception, 0
    vector  host_exception, 1
    vector  host_exception, 2
    vector  host_exception, 3
    vector  host_exception, 4
    vector  host_exception, 5
    vector  host_exception, 6
    vector  host_exception, 7

.global restore_frame
restore_frame:
    general ldp, sp
    ldr     x30, [sp, #240]
    ldp     x0, x1, [sp], #256
    eret
    dsb     nsh                     // no speculation past the return
    isb

.macro guest_vector number
    .balign 128
    stp     x0, x1, [sp, #-16]!
    mov     x1, #\number
    b       guest_exit
.endm

.balign 2048
.global guest_vectors
guest_vectors:
    .irp n, 0,1,2,3,4,5,6,7
    own_vector \n
    .endr
    guest_vector 0
    guest_vector 1
    guest_vector 2
    guest_vector 3
    guest_vector 4
    guest_vector 5
    guest_vector 6
    guest_vector 7

// enter_guest(x0: *mut GuestRegisters) -> x0: vector number (0 synchronous, 1 IRQ, 2 FIQ, 3 SError, +4 AArch32).
// GuestRegisters: x0-x30 at 0, ELR at 248, SPSR at 256.
.macro enter_by name, last:vararg
.global \name
\name:
    sub     sp, sp, #112
    stp     x19, x20, [sp]
    stp     x21, x22, [sp, #16]
    stp     x23, x24, [sp, #32]
    stp     x25, x26, [sp, #48]
    stp     x27, x28, [sp, #64]
    stp     x29, x30, [sp, #80]
    str     x0, [sp, #96]
    ldp     x1, x2, [x0, #248]
    msr     elr_el2, x1
    msr     spsr_el2, x2
    general ldp, x0
    ldr     x30, [x0, #240]
    ldp     x0, x1, [x0]
    \last
    dsb     nsh
    isb
.endm

enter_by enter_guest, eret
.if FAULT_KNOBS
// As if an SError had been pending when the partition was entered; emulation has none.
enter_by enter_guest_with_serror, b guest_vectors + 0x580
.endif

guest_exit:                         // x1 = number, guest's x0 and x1 on the stack
    ldr     x0, [sp, #112]          // 16 + 96
    general stp, x0
    str     x30, [x0, #240]
    ldp     x2, x3, [sp], #16
    stp     x2, x3, [x0]
    mrs     x2, elr_el2
    mrs     x3, spsr_el2
    stp     x2, x3, [x0, #248]
    mov     x0, x1
    ldp     x19, x20, [sp]
    ldp     x21, x22, [sp, #16]
    ldp     x23, x24, [sp, #32]
    ldp     x25, x26, [sp, #48]
    ldp     x27, x28, [sp, #64]
    ldp     x29, x30, [sp, #80]
    add     sp, sp, #112
    ret
