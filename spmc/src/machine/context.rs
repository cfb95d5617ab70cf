//! The execution context of a partition, and the way into it and back.

use super::{
    boot::fault,
    layout::STACK_SIZE,
    registers::{self, isb},
    simd::{Area, Swap},
};
use core::arch::global_asm;
use flexserve_abi::isa::IsaFeatures;
use flexserve_spmc::registers::Registers;

global_asm!(include_str!("exceptions.S"), fault = sym fault, stack_size = const STACK_SIZE);

unsafe extern "C" {
    fn enter_partition(context: *mut General) -> u64;
}

/// Of a worker on a lent core: EL0, deaf to the normal world and to EL3 (FIQ), stopped by the Secure world's interrupt.
const WORKER_PSTATE: u64 = 1 << 9 | 1 << 6;

/// EL0, and of the masks only those of debug exceptions and of the Secure world's own interrupts, of which there are
/// none: the normal world's (FIQ) and SErrors end the run.
const PSTATE: u64 = 1 << 9 | 1 << 7;

/// What `exceptions.S` loads and stores.
#[repr(C)]
struct General {
    x: [u64; 31],
    pc: u64,
    pstate: u64,
    sp: u64,
    tpidr: u64,
    esr: u64,
    far: u64,
}

const _: () =
    assert!(core::mem::offset_of!(General, pc) == 248 && core::mem::offset_of!(General, far) == 288);

/// The registers of one partition while it does not run.
pub struct Context {
    general: General,
    simd: Area,
}

/// Why a partition came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It made a call: x0 to x17.
    Call(Registers),
    /// An interrupt.
    Interrupt,
    /// It did what it must not.
    Fault {
        /// Exception syndrome.
        esr: u64,
        /// Fault address.
        far: u64,
        /// Program counter.
        pc: u64,
    },
}

impl Context {
    /// All zeroes.
    pub const NEW: Self = Self {
        general: General { x: [0; 31], pc: 0, pstate: 0, sp: 0, tpidr: 0, esr: 0, far: 0 },
        simd: Area::ZERO,
    };

    /// Makes it what it is at the entry point: x0 reserved, x1 the ISA features, all else zero.
    pub fn start(&mut self, entry: u64, isa: IsaFeatures) {
        self.general = Self::NEW.general;
        self.general.pc = entry;
        self.general.pstate = PSTATE;
        self.general.x[1] = isa.bits();
        self.simd = Area::ZERO;
    }

    /// Makes it what a worker is at its entry point: three registers, all else zero.
    pub fn start_worker(&mut self, entry: u64, registers: [u64; 3]) {
        *self = Self::NEW;
        self.general.pc = entry;
        self.general.pstate = WORKER_PSTATE;
        self.general.x[..3].copy_from_slice(&registers);
    }

    /// Puts an answer into x0 to x17.
    pub fn answer(&mut self, registers: &Registers) {
        self.general.x[..18].copy_from_slice(registers);
    }

    /// Runs, under an address space, until `serve` says that it is enough: it gets each exit and answers a call with
    /// x0 to x17, lets it go on as it was, or ends the run. The registers of whoever ran before are as before then.
    pub fn run<T>(
        &mut self,
        ttbr0: u64,
        outside: &mut Area,
        mut serve: impl FnMut(Exit) -> Result<Option<Registers>, T>,
    ) -> T {
        let idle = registers::ttbr0();
        let threads = (registers::tpidr_el0(), registers::tpidrro_el0());
        let powers = Powers::restrict();
        let Self { general, simd } = self;
        let swap = Swap::begin(outside, simd);
        // SAFETY: the SPMC's own memory is in TTBR1; TTBR0 is only ever used by EL0.
        unsafe { registers::set_ttbr0(ttbr0) };
        isb();
        let end = loop {
            // SAFETY: the context is valid, and its tables map nothing but what the partition may reach.
            let kind = unsafe { enter_partition(general) };
            match serve(general.exit(kind)) {
                Ok(Some(answer)) => general.x[..18].copy_from_slice(&answer),
                Ok(None) => {}
                Err(end) => break end,
            }
        };
        // SAFETY: as above: the idle tables map nothing that the SPMC or EL0 uses now.
        unsafe {
            registers::set_ttbr0(idle);
            registers::set_tpidr_el0(threads.0);
            registers::set_tpidrro_el0(threads.1);
        }
        powers.restore();
        isb();
        swap.end();
        end
    }
}

/// What EL0 may do beside accessing memory, in registers that EL3 does not switch with the world where the SPMC is at
/// S-EL1.
struct Powers {
    timers: u64,
    counters: Option<u64>,
}

impl Powers {
    /// Lets EL0 read the virtual counter, nothing else of the timers and no performance counter.
    fn restrict() -> Self {
        const VIRTUAL_COUNTER: u64 = 1 << 1;
        const PMU_FIELD: u32 = 8;
        // 0xf: a PMU that is not the architecture's.
        let has_counters = !matches!(registers::id_aa64dfr0() >> PMU_FIELD & 0xf, 0 | 0xf);
        let powers = Self { timers: registers::cntkctl(), counters: has_counters.then(registers::pmuserenr) };
        Self { timers: VIRTUAL_COUNTER, counters: has_counters.then_some(0) }.restore();
        powers
    }

    fn restore(&self) {
        // SAFETY: controls of EL0 only; where `counters` says something, there are some.
        unsafe {
            registers::set_cntkctl(self.timers);
            if let Some(counters) = self.counters {
                registers::set_pmuserenr(counters);
            }
        }
    }
}

impl General {
    fn exit(&self, kind: u64) -> Exit {
        const SVC_FROM_AARCH64: u64 = 0x15;
        let Self { x, esr, far, pc, .. } = self;
        match kind {
            0 if esr >> 26 & 0x3f == SVC_FROM_AARCH64 => Exit::Call(core::array::from_fn(|i| x[i])),
            1 | 2 => Exit::Interrupt,
            _ => Exit::Fault { esr: *esr, far: *far, pc: *pc },
        }
    }
}
