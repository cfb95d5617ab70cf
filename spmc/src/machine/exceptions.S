/*
 * Into a partition and back, and the vectors.
 *
 * Context, by offset: x0..x30 (0..247), PC (248), PSTATE (256), SP (264), TPIDR_EL0 (272), ESR (280), FAR (288).
 */

    .section .text.vectors, "ax"

    .macro  slot target
    .balign 128
    b       \target
    .endm

    .macro  slot_from_el0 kind
    .balign 128
    stp     x0, x1, [sp, #-16]!
    mov     x1, #\kind
    b       from_el0
    .endm

    .balign 2048
    .global vectors
vectors:
    slot    own_fault
    slot    own_fault
    slot    own_fault
    slot    own_fault
    slot    own_synchronous
    slot    own_fault
    slot    own_fault
    slot    own_fault
    slot_from_el0 0
    slot_from_el0 1
    slot_from_el0 2
    slot_from_el0 3
    slot    own_fault
    slot    own_fault
    slot    own_fault
    slot    own_fault

/* fn enter_partition(context: *mut Context) -> kind of the exception that came back (u64) */
    .global enter_partition
enter_partition:
    stp     x29, x30, [sp, #-112]!
    stp     x19, x20, [sp, #16]
    stp     x21, x22, [sp, #32]
    stp     x23, x24, [sp, #48]
    stp     x25, x26, [sp, #64]
    stp     x27, x28, [sp, #80]
    str     x0, [sp, #96]
    ldp     x1, x2, [x0, #248]
    msr     elr_el1, x1
    msr     spsr_el1, x2
    ldp     x1, x2, [x0, #264]
    msr     sp_el0, x1
    msr     tpidr_el0, x2
    msr     tpidrro_el0, xzr
    ldp     x2, x3, [x0, #16]
    ldp     x4, x5, [x0, #32]
    ldp     x6, x7, [x0, #48]
    ldp     x8, x9, [x0, #64]
    ldp     x10, x11, [x0, #80]
    ldp     x12, x13, [x0, #96]
    ldp     x14, x15, [x0, #112]
    ldp     x16, x17, [x0, #128]
    ldp     x18, x19, [x0, #144]
    ldp     x20, x21, [x0, #160]
    ldp     x22, x23, [x0, #176]
    ldp     x24, x25, [x0, #192]
    ldp     x26, x27, [x0, #208]
    ldp     x28, x29, [x0, #224]
    ldr     x30, [x0, #240]
    ldp     x0, x1, [x0]
    eret
    dsb     nsh                             /* nothing behind an ERET is worth speculating on */
    isb

/* x1 = kind; the partition's x0 and x1 are on the stack, above them what enter_partition left. */
from_el0:
    ldr     x0, [sp, #(16 + 96)]
    stp     x2, x3, [x0, #16]
    stp     x4, x5, [x0, #32]
    stp     x6, x7, [x0, #48]
    stp     x8, x9, [x0, #64]
    stp     x10, x11, [x0, #80]
    stp     x12, x13, [x0, #96]
    stp     x14, x15, [x0, #112]
    stp     x16, x17, [x0, #128]
    stp     x18, x19, [x0, #144]
    stp     x20, x21, [x0, #160]
    stp     x22, x23, [x0, #176]
    stp     x24, x25, [x0, #192]
    stp     x26, x27, [x0, #208]
    stp     x28, x29, [x0, #224]
    str     x30, [x0, #240]
    ldp     x2, x3, [sp], #16
    stp     x2, x3, [x0]
    mrs     x2, elr_el1
    mrs     x3, spsr_el1
    stp     x2, x3, [x0, #248]
    mrs     x2, sp_el0
    mrs     x3, tpidr_el0
    stp     x2, x3, [x0, #264]
    mrs     x2, esr_el1
    mrs     x3, far_el1
    stp     x2, x3, [x0, #280]
    mov     x0, x1
    ldp     x19, x20, [sp, #16]
    ldp     x21, x22, [sp, #32]
    ldp     x23, x24, [sp, #48]
    ldp     x25, x26, [sp, #64]
    ldp     x27, x28, [sp, #80]
    ldp     x29, x30, [sp], #112
    ret

/* A fault of the SPMC itself. Only guarded_copy may have one: memory of the normal world can move to another world at
 * any time. It uses x0 to x3; its caller expects x9 and x10 to change. */
own_synchronous:
    mrs     x9, elr_el1
    adrp    x10, guarded_copy
    add     x10, x10, :lo12:guarded_copy
    cmp     x9, x10
    b.lo    own_fault
    adrp    x10, guarded_copy_fault
    add     x10, x10, :lo12:guarded_copy_fault
    cmp     x9, x10
    b.hs    own_fault
    mrs     x9, esr_el1
    lsr     x9, x9, #26
    cmp     x9, #0x25                       /* data abort, same exception level */
    b.ne    own_fault
    msr     elr_el1, x10
    eret

/* There is no way back, so the stack begins anew: it may be the one that overflowed. */
own_fault:
    mov     x0, sp
    sub     x0, x0, #1
    orr     x0, x0, #({stack_size} - 1)
    add     sp, x0, #1
    mrs     x0, esr_el1
    mrs     x1, far_el1
    mrs     x2, elr_el1
    b       {fault}

/* fn guarded_copy(to: *mut u8, from: *const u8, bytes: usize) -> 0, or 1 if an access faulted */
    .global guarded_copy
guarded_copy:
    subs    x2, x2, #8
    b.lo    1f
0:  ldr     x3, [x1], #8
    str     x3, [x0], #8
    subs    x2, x2, #8
    b.hs    0b
1:  adds    x2, x2, #8
    b.eq    3f
2:  ldrb    w3, [x1], #1
    strb    w3, [x0], #1
    subs    x2, x2, #1
    b.ne    2b
3:  mov     x0, #0
    ret
guarded_copy_fault:
    mov     x0, #1
    ret
