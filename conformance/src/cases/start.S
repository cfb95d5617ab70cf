// The first instructions of a core that was turned on: x0 = where to record what it finds (`psci::Started`).

.text
.global recorded_start
recorded_start:
    str     x0, [x0, #16]
    mrs     x1, CurrentEL
    mrs     x2, daif
    stp     x1, x2, [x0, #24]
    cmp     x1, #(2 << 2)
    b.eq    0f
    mrs     x1, sctlr_el1
    b       1f
0:  mrs     x1, sctlr_el2
1:  mrs     x2, mpidr_el1
    stp     x1, x2, [x0, #40]
    mrs     x1, spsel
    str     x1, [x0, #56]
    dsb     sy
    ldp     x0, x1, [x0]
    br      x1
