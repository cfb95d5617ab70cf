// Entry of every core, exception vectors, and the accesses that are allowed to fault.

.section .text.entry, "ax"

// The boot core. NS-EL2 or NS-EL1, MMU off.
.global payload_entry
payload_entry:
    msr     daifset, #0xf
    bl      setup_core
    adrp    x0, bss_start
    add     x0, x0, :lo12:bss_start
    adrp    x1, bss_end
    add     x1, x1, :lo12:bss_end
0:  cmp     x0, x1
    b.hs    1f
    stp     xzr, xzr, [x0], #16
    b       0b
1:  adrp    x0, boot_stack_top
    add     x0, x0, :lo12:boot_stack_top
    mov     sp, x0
    mov     x29, xzr
    mov     x30, xzr
    b       payload_main

// Every other core, by PSCI CPU_ON: x0 = top of its stack.
.global secondary_entry
secondary_entry:
    msr     daifset, #0xf
    mov     x19, x0
    bl      setup_core
    mov     sp, x19
    mov     x29, xzr
    mov     x30, xzr
    b       secondary_main

// SIMD and SVE on, vectors, and an MMU with blocks of 1 GiB until mmu.rs has built better tables. EL2 becomes a host's (VHE),
// where names of EL1 registers mean those of EL2; an EL2 without VHE is left for EL1. Changes x0.
setup_core:
    mrs     x0, CurrentEL
    cmp     x0, #(2 << 2)
    b.ne    3f
    mrs     x0, id_aa64mmfr1_el1
    tst     x0, #(0xf << 8)         // VH
    b.eq    2f
    ldr     x0, =0x488000000        // HCR_EL2: E2H, RW, TGE
    msr     hcr_el2, x0
    isb
    b       3f
2:  mov     x0, #0x80000000         // HCR_EL2: RW
    msr     hcr_el2, x0
    mov     x0, #0x33ff             // CPTR_EL2: its RES1 bits
    msr     cptr_el2, x0
    mov     x0, #3                  // CNTHCTL_EL2: no trap of the physical timer
    msr     cnthctl_el2, x0
    msr     cntvoff_el2, xzr
    mrs     x0, midr_el1
    msr     vpidr_el2, x0
    mrs     x0, mpidr_el1
    msr     vmpidr_el2, x0
    ldr     x0, =0x30d00800         // SCTLR_EL1: its RES1 bits, MMU off
    msr     sctlr_el1, x0
    mov     x0, #0x3c5              // EL1h, all masked
    msr     spsr_el2, x0
    adr     x0, 3f
    msr     elr_el2, x0
    eret
3:  mov     x0, #0x330000           // CPACR: no trap of SIMD, SVE
    msr     cpacr_el1, x0
    adrp    x0, vectors
    add     x0, x0, :lo12:vectors
    msr     vbar_el1, x0
    ldr     x0, =0xff04             // MAIR: 0 = Device-nGnRE, 1 = Normal write-back
    msr     mair_el1, x0
    ldr     x0, =0x200803519        // TCR: 4 KiB granule, 39-bit VA in TTBR0, 40-bit PA, write-back, inner shareable
    msr     tcr_el1, x0
    adrp    x0, boot_table
    msr     ttbr0_el1, x0
    tlbi    vmalle1
    ic      iallu
    dsb     sy
    isb
    ldr     x0, =0x30d5181d         // SCTLR: RES1 bits of Armv8.0, M, C, SA, I
    msr     sctlr_el1, x0
    isb
    ret

// Accesses that may fault; exceptions.rs makes them return all the same.
.text
.global probe_read
probe_read:                         // (x0: address) -> value
    ldr     x0, [x0]
    ret

.global probe_write
probe_write:                        // (x0: address, x1: value)
    str     x1, [x0]
    ret

.global probe_execute
probe_execute:                      // (x0: address)
    stp     x29, x30, [sp, #-16]!
    blr     x0
    ldp     x29, x30, [sp], #16
    ret

.global probe_hypervisor_call
probe_hypervisor_call:
    hvc     #0
    ret

// One frame for every exception: x0..x30, ELR, SPSR, and the vector's number.
.macro vector number
.balign 0x80
    sub     sp, sp, #272
    stp     x0, x1, [sp, #0]
    mov     x1, #\number
    b       exception_entry
.endm

.balign 0x800
vectors:
    vector 0
    vector 1
    vector 2
    vector 3
    vector 4
    vector 5
    vector 6
    vector 7
    vector 8
    vector 9
    vector 10
    vector 11
    vector 12
    vector 13
    vector 14
    vector 15

exception_entry:
    stp     x2, x3, [sp, #16]
    stp     x4, x5, [sp, #32]
    stp     x6, x7, [sp, #48]
    stp     x8, x9, [sp, #64]
    stp     x10, x11, [sp, #80]
    stp     x12, x13, [sp, #96]
    stp     x14, x15, [sp, #112]
    stp     x16, x17, [sp, #128]
    stp     x18, x19, [sp, #144]
    stp     x20, x21, [sp, #160]
    stp     x22, x23, [sp, #176]
    stp     x24, x25, [sp, #192]
    stp     x26, x27, [sp, #208]
    stp     x28, x29, [sp, #224]
    mrs     x2, elr_el1
    mrs     x3, spsr_el1
    stp     x30, x2, [sp, #240]
    stp     x3, x1, [sp, #256]
    mov     x0, sp
    bl      exception
    ldp     x30, x2, [sp, #240]
    ldr     x3, [sp, #256]
    msr     elr_el1, x2
    msr     spsr_el1, x3
    ldp     x28, x29, [sp, #224]
    ldp     x26, x27, [sp, #208]
    ldp     x24, x25, [sp, #192]
    ldp     x22, x23, [sp, #176]
    ldp     x20, x21, [sp, #160]
    ldp     x18, x19, [sp, #144]
    ldp     x16, x17, [sp, #128]
    ldp     x14, x15, [sp, #112]
    ldp     x12, x13, [sp, #96]
    ldp     x10, x11, [sp, #80]
    ldp     x8, x9, [sp, #64]
    ldp     x6, x7, [sp, #48]
    ldp     x4, x5, [sp, #32]
    ldp     x2, x3, [sp, #16]
    ldp     x0, x1, [sp], #272
    eret

// Level 1, one entry a GiB: devices below 1 GiB, never executed; DRAM behind it.
.section .data.boot_table, "aw"
.balign 4096
boot_table:
    .quad   0x0060000000000401      // UXN, PXN, AF, attribute 0, block
    .quad   0x0000000040000705      // AF, inner shareable, attribute 1, block
    .quad   0x0000000080000705
    .quad   0x00000000c0000705
    .fill   508, 8, 0

.section .stacks, "aw", %nobits
.balign 4096
    .space  0x20000
boot_stack_top:
