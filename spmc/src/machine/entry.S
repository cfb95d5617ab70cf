/*
 * From EL3 to Rust, on the primary core and on the others.
 *
 * Everything in .text.entry runs at its physical address, first with the MMU off; it is mapped at that address too
 * (TTBR0) for the moment in which the MMU comes on. A core that comes back after CPU_OFF arrives here with the MMU on
 * and the same tables, which changes nothing.
 */
    .section .text.entry, "ax"
    .global spmc_entry
spmc_entry:
    mov     x19, x0
    bl      configure

    /* Pointers in the image become addresses in the window: R_AARCH64_RELATIVE, offset, type, addend. */
    adrp    x0, __rela_start
    add     x0, x0, :lo12:__rela_start
    adrp    x1, __rela_end
    add     x1, x1, :lo12:__rela_end
    ldr     x2, ={window}
6:  cmp     x0, x1
    b.hs    7f
    ldp     x3, x4, [x0]
    ldr     x5, [x0, #16]
    add     x0, x0, #24
    cmp     x4, #1027
    b.ne    6b
    add     x5, x5, x2
    str     x5, [x3]
    b       6b
7:

    /* Start tables: the SPMC's place in 2 MiB blocks, at its physical address and in the window (the index in level 1
     * is the same). They live until Rust has built the real ones. */
    adrp    x0, start_level1
    adrp    x1, start_level2
    mov     x2, x0
    add     x3, x0, #8192
0:  dc      ivac, x2
    stp     xzr, xzr, [x2]
    stp     xzr, xzr, [x2, #16]
    stp     xzr, xzr, [x2, #32]
    stp     xzr, xzr, [x2, #48]
    add     x2, x2, #64
    cmp     x2, x3
    b.ne    0b
    ldr     x4, ={base}
    ubfx    x5, x4, #30, #9
    orr     x6, x1, #3
    str     x6, [x0, x5, lsl #3]
    ldr     x7, ={end}
    bic     x4, x4, #0x1fffff
    mov     x8, #0x701                      /* block, normal memory, inner shareable, accessed */
1:  ubfx    x5, x4, #21, #9
    orr     x6, x4, x8
    str     x6, [x1, x5, lsl #3]
    add     x4, x4, #0x200000
    cmp     x4, x7
    b.lo    1b
    dsb     sy

    msr     ttbr0_el1, x0
    msr     ttbr1_el1, x0
    ldr     x0, ={sctlr_start}
    ldr     x1, =primary_high
    mov     x20, xzr
    b       mmu_on

    .global secondary_entry
secondary_entry:
    bl      configure
    mrs     x1, mpidr_el1
    ubfx    x20, x1, #0, #8
    ldr     x2, =0xff00ffff00
    tst     x1, x2
    b.ne    2f
    cmp     x20, {cores}
    b.hs    2f
    adrp    x0, {idle_root}
    msr     ttbr0_el1, x0
    adrp    x0, {kernel_root}
    msr     ttbr1_el1, x0
    ldr     x0, ={sctlr}
    ldr     x1, =secondary_high
    b       mmu_on
2:  /* A core that this SPMC has no place for: FFA_ERROR(NOT_SUPPORTED). The normal world may use it, but not call. */
    mov     w0, #0x0060
    movk    w0, #0x8400, lsl #16
    mov     x1, xzr
    mov     x2, #-1
    smc     #0
    b       2b

/* x0 = SCTLR, x1 = where to go on, in the window. */
mmu_on:
    mrs     x2, id_aa64mmfr1_el1
    tst     x2, #(0xf << 20)                /* PAN */
    b.ne    8f
    orr     x0, x0, #{span}
8:
    dsb     sy
    isb
    tlbi    vmalle1
    ic      iallu
    dsb     sy
    isb
    msr     sctlr_el1, x0
    isb
    br      x1

/* System registers that do not depend on tables. Changes x0 to x4. */
configure:
    mrs     x0, CurrentEL
    cmp     x0, #(2 << 2)
    b.ne    3f
    ldr     x0, ={hcr}
    msr     hcr_el2, x0
    isb
    mrs     x0, mdcr_el2                    /* EL0 reads no performance counters */
    orr     x0, x0, #(3 << 5)
    msr     mdcr_el2, x0
    ldr     x0, ={cptr}
    b       4f
3:  ldr     x0, ={cpacr}
4:  msr     cpacr_el1, x0
    ldr     x0, ={mair}
    msr     mair_el1, x0
    ldr     x0, ={tcr}
    mrs     x1, s3_0_c0_c7_2                /* ID_AA64MMFR2_EL1: zero where there is none */
    ubfx    x1, x1, #60, #4                 /* E0PD */
    cbz     x1, 5f
    ldr     x1, ={e0pd}
    orr     x0, x0, x1
5:
    mrs     x1, id_aa64mmfr0_el1
    ubfx    x1, x1, #0, #4                  /* PARange, 48 bits at most with these tables */
    mov     x2, #5
    cmp     x1, x2
    csel    x1, x1, x2, lo
    bfi     x0, x1, #32, #3
    msr     tcr_el1, x0
    isb
    ret

    .ltorg

    .section .text.high, "ax"
primary_high:
    bl      on_stack
    adrp    x0, __bss_start
    add     x0, x0, :lo12:__bss_start
    adrp    x1, __bss_end
    add     x1, x1, :lo12:__bss_end
4:  cmp     x0, x1
    b.hs    5f
    stp     xzr, xzr, [x0], #16
    b       4b
5:  mov     x0, x19
    b       {primary}

secondary_high:
    bl      on_stack
    mov     x0, x20
    b       {secondary}

/* The stack of core x20, and the vectors. */
on_stack:
    adrp    x0, stacks
    mov     x1, {stack_size}
    madd    x0, x1, x20, x0
    add     x0, x0, x1
    mov     sp, x0
    adrp    x0, vectors
    add     x0, x0, :lo12:vectors
    msr     vbar_el1, x0
    isb
    mov     x29, xzr
    ret

    .section .start_tables, "aw", @nobits
    .balign 4096
start_level1:
    .space  4096
start_level2:
    .space  4096

    .section .stacks, "aw", @nobits
    .balign {stack_size}
    .global stacks
stacks:
    .space  {stack_size} * {cores}
