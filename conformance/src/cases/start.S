// The first instructions of a core that was turned on: x0 = where to record what it finds (`psci::Started`).

.text
.global recorded_start
recorded_start:
    str     x0, [x0, #16]
    mrs     x1, CurrentEL
    mrs     x2, daif
    stp     x1, x2, [x0, #24]
    mov     x3, #(0b11 << 20)       // SIMD is not trapped: FPEN
    cmp     x1, #(2 << 2)
    b.eq    0f
    mrs     x1, sctlr_el1
    msr     cpacr_el1, x3
    b       1f
0:  mrs     x1, sctlr_el2
    mov     x4, #0x33ff             // of CPTR_EL2 without E2H: its RES1 bits, no TFP
    orr     x3, x3, x4
    msr     cptr_el2, x3
1:  isb
    mrs     x2, mpidr_el1
    stp     x1, x2, [x0, #40]
    mov     x1, xzr
.irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    mov     x2, v\n\().d[0]
    mov     x3, v\n\().d[1]
    orr     x1, x1, x2
    orr     x1, x1, x3
.endr
    str     x1, [x0, #56]
    dsb     sy
    ldp     x0, x1, [x0]
    br      x1
