// exception_taken(x0: address, x1: where to begin, x2: with which PSTATE, x3: HCR_EL2 of a guest or 0, x4: Taken)
//
// Begins there, and records the first exception. Its handler makes a second one, whose SPSR tells the PSTATE that the first arrived
// with. A guest comes back by a third. Meanwhile x9 counts exceptions, and x10 to x17 hold what was seen.

.text
.global exception_taken
exception_taken:
    mrs     x5, vbar_el1
    stp     x4, x5, [sp, #-32]!
    mov     x9, xzr
    mov     x15, xzr
    mrs     x17, CurrentEL
    adr     x5, taken_vectors
    msr     vbar_el1, x5
    cbz     x3, 0f
    mrs     x6, hcr_el2
    msr     S3_5_C12_C0_0, x5       // VBAR_EL12
    ldr     x7, =0x100030500800     // SCTLR_EL12: DSSBS; RES1 bits, but not SPAN; MMU off
    msr     S3_5_C1_C0_0, x7
    msr     hcr_el2, x3
0:  stp     x3, x6, [sp, #16]
    msr     spsr_el1, x2
    msr     elr_el1, x1
    isb
    eret

// What is begun with: x0 = address. What does not fault makes a call instead.
.global taken_read, taken_write, taken_branch, taken_call, taken_hypervisor_call
taken_read:
    ldr     xzr, [x0]
    svc     #0
taken_write:
    str     xzr, [x0]
    svc     #0
taken_branch:
    br      x0
taken_call:
    svc     #0
taken_hypervisor_call:
    hvc     #0

.macro taken_vector number
.balign 0x80
    mov     x16, #\number
    b       taken_exception
.endm

.balign 0x800
taken_vectors:
    taken_vector 0
    taken_vector 1
    taken_vector 2
    taken_vector 3
    taken_vector 4
    taken_vector 5
    taken_vector 6
    taken_vector 7
    taken_vector 8
    taken_vector 9
    taken_vector 10
    taken_vector 11
    taken_vector 12
    taken_vector 13
    taken_vector 14
    taken_vector 15

taken_exception:
    add     x9, x9, #1
    cmp     x9, #2
    b.hi    2f
    b.eq    1f
    mrs     x10, esr_el1
    mrs     x11, far_el1
    mrs     x12, elr_el1
    mrs     x13, spsr_el1
    mov     x14, x16
    svc     #0
1:  mrs     x15, spsr_el1
    mrs     x16, CurrentEL
    cmp     x16, x17
    b.eq    2f
    hvc     #0
2:  ldp     x3, x6, [sp, #16]
    cbz     x3, 3f
    msr     hcr_el2, x6
3:  ldp     x4, x5, [sp], #32
    msr     vbar_el1, x5
    stp     x10, x11, [x4]
    stp     x12, x13, [x4, #16]
    stp     x14, x15, [x4, #32]
    orr     x17, x17, #1            // this level with its own stack,
    orr     x17, x17, #0x3c0        // everything masked
    msr     spsr_el1, x17
    msr     elr_el1, x30
    isb
    eret
