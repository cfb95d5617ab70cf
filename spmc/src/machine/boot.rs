//! From the entry code to the first `FFA_MSG_WAIT`.

use super::{
    context::Context,
    hardware::{Machine, zero_pages},
    layout::{self, CORES, NORMAL_WINDOW, SECURE_WINDOW, STACK_SIZE, WINDOW_SIZE, physical, secondary_start},
    registers::{self, smc},
    serve, simd,
};
use arm_ffa::FuncId;
use core::{arch::global_asm, cell::UnsafeCell};
use flexserve_abi::{ffa::EndpointId, isa::IsaFeatures, log::World};
use flexserve_platform::{LENDABLE, SECURE_UART_BASE, SPMC, SPMC_MANIFEST};
use flexserve_spmc::{
    claims::{self, Claims},
    lending::{Ledger, REGIONS, Region},
    manifest::{self, Place},
    partition::{Entry, Phase, Step},
    spmc::{PARTITIONS, Spmc},
    tables::{Access, MAIR, OutOfTables, PAGE, Pool, Table, TableId, map_range},
};
use spin::mutex::SpinMutex;

/// HCR_EL2: E2H, TGE, RW, and pointer authentication untrapped.
const HCR: u64 = 1 << 34 | 1 << 27 | 1 << 31 | 1 << 41 | 1 << 40;
/// CPACR_EL1: SIMD and SVE untrapped, SME and trace trapped.
const CPACR: u64 = 0b11 << 20 | 0b11 << 16 | 1 << 28;
/// CPTR_EL2 with E2H: the same, and activity monitors trapped.
const CPTR: u64 = CPACR | 1 << 30;
/// TCR_EL1: 39-bit addresses, 4 KiB pages, write-back inner-shareable walks, 16-bit ASIDs in TTBR0.
const TCR: u64 =
    25 | 1 << 8 | 1 << 10 | 0b11 << 12 | 25 << 16 | 1 << 24 | 1 << 26 | 0b11 << 28 | 0b10 << 30 | 1 << 36;
/// TCR_EL1, where there is FEAT_E0PD: EL0 learns nothing of the upper half, not even by timing (E0PD1).
const E0PD: u64 = 1 << 56;
/// SCTLR_EL1: MMU, caches, stack alignment checks, WFI and WFE and DC ZVA at EL0, and the bits that are one.
const SCTLR_START: u64 = 1
    | 1 << 2
    | 1 << 3
    | 1 << 4
    | 1 << 11
    | 1 << 12
    | 1 << 14
    | 1 << 16
    | 1 << 18
    | 1 << 20
    | 1 << 22
    | 1 << 28
    | 1 << 29;
/// SCTLR_EL1.WXN: nothing writable can be executed.
const WXN: u64 = 1 << 19;
/// SCTLR_EL1.SPAN: one where there is no FEAT_PAN; zero sets PSTATE.PAN at every exception.
const SPAN: u64 = 1 << 23;
/// `FFA_SECONDARY_EP_REGISTER` and other calls answer this.
const SUCCESS: [u64; 2] = [0x8400_0061, 0xc400_0061];

global_asm!(
    include_str!("entry.S"),
    window = const SECURE_WINDOW,
    base = const SPMC.base,
    end = const SPMC.end(),
    sctlr_start = const SCTLR_START,
    sctlr = const SCTLR_START | WXN,
    span = const SPAN,
    hcr = const HCR,
    cpacr = const CPACR,
    cptr = const CPTR,
    e0pd = const E0PD,
    mair = const MAIR,
    tcr = const TCR,
    cores = const CORES,
    stack_size = const STACK_SIZE,
    idle_root = sym IDLE_ROOT,
    kernel_root = sym KERNEL_ROOT,
    primary = sym primary,
    secondary = sym secondary,
);

/// The manager on this machine.
pub type Manager = Spmc<'static, Machine>;

/// The state of all calls. Locked for one call at a time, never while a partition or the normal world runs.
pub static STATE: SpinMutex<Option<Manager>> = SpinMutex::new(None);

/// Level 1 of the upper addresses.
static KERNEL_ROOT: Table = Table::new();
/// Level 1 of the lower addresses while no partition runs: the start-up code, for cores that come on.
static IDLE_ROOT: Table = Table::new();

/// Memory that is too large for a stack and is used from the start to the end.
struct Storage<T>(UnsafeCell<T>);

// SAFETY: `primary` takes each of them once.
unsafe impl<T> Sync for Storage<T> {}

/// Tables that the links of the pool can name.
const MAX_TABLES: usize = (SPMC.size / PAGE) as usize;

static LINKS: Storage<[TableId; MAX_TABLES]> = Storage(UnsafeCell::new([0; MAX_TABLES]));
static CLAIMS: Storage<[u64; claims::WORDS]> = Storage(UnsafeCell::new([0; claims::WORDS]));
static REGION_LIST: Storage<heapless::Vec<Region, REGIONS>> = Storage(UnsafeCell::new(heapless::Vec::new()));
static CONTEXTS: Storage<[Context; PARTITIONS]> =
    Storage(UnsafeCell::new([const { Context::NEW }; PARTITIONS]));
static PLACES: Storage<[PartitionPlace; PARTITIONS]> =
    Storage(UnsafeCell::new([PartitionPlace { id: 0, entry: 0, ttbr0: 0 }; PARTITIONS]));

/// What of a partition is fixed at start-up.
#[derive(Clone, Copy)]
pub struct PartitionPlace {
    /// Its ID.
    pub id: EndpointId,
    /// Its entry point.
    pub entry: u64,
    /// TTBR0 while it runs.
    pub ttbr0: u64,
}

/// The partitions, as far as they are the machine's.
pub struct Partitions;

impl Partitions {
    /// The context of a partition.
    pub fn context(index: usize) -> *mut Context {
        CONTEXTS.0.get().cast::<Context>().wrapping_add(index)
    }

    /// Which it is, and where.
    pub fn place(index: usize) -> PartitionPlace {
        // SAFETY: written only by `primary`, before any other core or partition runs.
        unsafe { (*PLACES.0.get())[index] }
    }
}

/// What partitions are told of the CPU. All cores are taken to be alike.
pub fn isa_features() -> IsaFeatures {
    let field = |register: u64, bit: u32| register >> bit & 0xf;
    let (isar0, isar1) = (registers::id_aa64isar0(), registers::id_aa64isar1());
    [
        (field(isar0, 44) != 0, IsaFeatures::DOTPROD),
        (field(isar1, 52) != 0, IsaFeatures::I8MM),
        (simd::has_sve(), IsaFeatures::SVE),
        (simd::has_sve() && field(registers::id_aa64zfr0(), 0) != 0, IsaFeatures::SVE2),
        (field(isar0, 12) != 0, IsaFeatures::SHA256),
    ]
    .into_iter()
    .filter(|(present, _)| *present)
    .fold(IsaFeatures::NONE, |set, (_, feature)| set.union(feature))
}

/// The first line of Rust, on the core that boots.
extern "C" fn primary(manifest: u64) -> ! {
    // SAFETY: the one call, before any other core runs.
    let (links, words, regions) =
        unsafe { (&mut *LINKS.0.get(), &mut *CLAIMS.0.get(), &mut *REGION_LIST.0.get()) };
    let tables = layout::pool();
    let mut pool = Pool::new(tables, links, physical(tables.as_ptr() as u64));
    if build_tables(&mut pool).is_err() {
        registers::sleep();
    }
    turn_to_tables();
    // SAFETY: the window maps the UART as device memory.
    unsafe {
        flexserve_secure_log::init(World::Spmc, (SECURE_WINDOW + SECURE_UART_BASE) as usize);
    }
    prepare_core();
    defmt::info!("SPMC at {=u64:#x}, tables for {=usize} MiB of pages", SPMC.base, pool.available() * 2);

    let mut spmc = Spmc::new(Machine, Ledger::new(pool, Claims::new(words), regions));
    let count = find_partitions(&mut spmc, manifest);
    *STATE.lock() = Some(spmc);
    (0..count).for_each(start_partition);

    let mut register = [0; 18];
    register[0] = u32::from(FuncId::SecondaryEpRegister64).into();
    register[1] = secondary_start();
    if !SUCCESS.contains(&smc(register)[0]) {
        defmt::error!("EL3 takes no entry point for other cores");
    }
    defmt::info!("ready");
    serve::normal_world(0)
}

/// The first line of Rust, on every other core.
extern "C" fn secondary(core: usize) -> ! {
    prepare_core();
    serve::normal_world(core)
}

fn prepare_core() {
    const PAN_FIELD: u32 = 20;
    if registers::id_aa64mmfr1() >> PAN_FIELD & 0xf != 0 {
        registers::set_pan();
    }
}

/// Fills [`KERNEL_ROOT`] and [`IDLE_ROOT`].
fn build_tables(pool: &mut Pool) -> Result<(), OutOfTables> {
    let image = layout::image();
    let mut map = |start: u64, end: u64, access| {
        map_range(pool, &KERNEL_ROOT, start, physical(start), end - start, access)
    };
    map(image.start, image.text_end, Access::SpmcCode)?;
    map(image.text_end, image.rodata_end, Access::SpmcConstants)?;
    map(image.rodata_end, image.stacks, Access::SpmcData)?;
    for core in 0..CORES as u64 {
        let stack = image.stacks + core * STACK_SIZE;
        map(stack + PAGE, stack + STACK_SIZE, Access::SpmcData)?;
    }
    map(image.stacks + CORES as u64 * STACK_SIZE, image.end, Access::SpmcData)?;
    let uart = SECURE_WINDOW + SECURE_UART_BASE;
    map(uart, uart + PAGE, Access::SpmcDevice)?;
    let manifest = SECURE_WINDOW + SPMC_MANIFEST.base;
    map(manifest, manifest + SPMC_MANIFEST.size, Access::SpmcConstants)?;
    for bank in LENDABLE {
        assert!(bank.end() <= WINDOW_SIZE);
        let (secure, normal) = (SECURE_WINDOW + bank.base, NORMAL_WINDOW + bank.base);
        map_range(pool, &KERNEL_ROOT, secure, bank.base, bank.size, Access::SpmcLentData)?;
        map_range(pool, &KERNEL_ROOT, normal, bank.base, bank.size, Access::SpmcNonSecureData)?;
    }
    let start = physical(image.start);
    map_range(pool, &IDLE_ROOT, start, start, image.entry_end - image.start, Access::SpmcStartCode)
}

fn turn_to_tables() {
    registers::publish_tables();
    // SAFETY: the new tables map the SPMC where it runs.
    unsafe {
        registers::set_ttbr1(physical((&raw const KERNEL_ROOT) as u64));
        registers::set_ttbr0(physical((&raw const IDLE_ROOT) as u64));
        registers::isb();
        registers::flush_all();
        registers::set_sctlr(registers::sctlr() | WXN);
        registers::isb();
    }
}

/// Reads the manifests and answers how many partitions there are.
fn find_partitions(spmc: &mut Manager, manifest: u64) -> usize {
    if manifest != SPMC_MANIFEST.base {
        defmt::error!("no manifest: x0 = {=u64:#x}", manifest);
        return 0;
    }
    // SAFETY: mapped read-only, and written by nobody any more.
    let dtb = unsafe {
        core::slice::from_raw_parts((SECURE_WINDOW + manifest) as *const u8, SPMC_MANIFEST.size as usize)
    };
    match manifest::places::<PARTITIONS>(dtb) {
        Ok(places) => places.iter().filter(|place| add_partition(spmc, place)).count(),
        Err(error) => {
            defmt::error!("unusable manifest: {}", defmt::Debug2Format(&error));
            0
        }
    }
}

fn add_partition(spmc: &mut Manager, place: &Place) -> bool {
    let window = SECURE_WINDOW + place.base;
    let mapped =
        map_range(&mut spmc.ledger.pool, &KERNEL_ROOT, window, place.base, place.size, Access::SpmcData);
    registers::publish_tables();
    // SAFETY: just mapped; the partition does not run yet.
    let region = unsafe { core::slice::from_raw_parts(window as *const u8, place.size as usize) };
    let manifest = match (mapped, manifest::package(region)) {
        (Ok(()), Ok(manifest)) => manifest,
        (_, error) => {
            defmt::error!("partition {=u16:#06x}: {}", place.id, defmt::Debug2Format(&error.err()));
            return false;
        }
    };
    let Ok(index) = spmc.add_partition(place, &manifest) else {
        defmt::error!("partition {=u16:#06x}: no memory", place.id);
        return false;
    };
    let behind_image = spmc.partition(index).entry + u64::from(manifest.image_size);
    let pages = (manifest.memory_size - manifest.image_size) / PAGE as u32;
    // SAFETY: the partition's own memory, which nobody uses yet; `region` is not used any more.
    unsafe { zero_pages(behind_image, pages) };
    let partition = spmc.partition(index);
    let root = physical(spmc.ledger.pool.table(partition.space.root()) as *const Table as u64);
    // SAFETY: no other core runs.
    unsafe {
        (*PLACES.0.get())[index] = PartitionPlace {
            id: place.id,
            entry: partition.entry,
            ttbr0: root | u64::from(partition.asid) << 48,
        };
    }
    defmt::info!("partition {=u16:#06x} at {=u64:#x}", place.id, partition.entry);
    true
}

/// Runs a new partition until it waits for its first message.
fn start_partition(index: usize) {
    registers::flush_instructions();
    registers::flush_all();
    if let Some(spmc) = STATE.lock().as_mut() {
        spmc.start(index);
    }
    let mut step = Step::Run(index, Entry::Start);
    loop {
        serve::finish(0, step);
        // The normal world is not there yet: what is interrupted goes on.
        let paused = STATE.lock().as_mut().is_some_and(|spmc| spmc.partition(index).phase == Phase::Starting);
        if !paused {
            return;
        }
        step = Step::Run(index, Entry::Resume);
    }
}

/// A fault in the SPMC's own code.
pub extern "C" fn fault(esr: u64, far: u64, elr: u64) -> ! {
    defmt::error!("panic: fault esr={=u64:#018x} far={=u64:#018x} elr={=u64:#018x}", esr, far, elr);
    registers::sleep()
}

/// Tells where, never what.
#[panic_handler]
fn panic(info: &core::panic::PanicInfo) -> ! {
    match info.location() {
        Some(at) => defmt::error!("panic at {=str}:{=u32}", at.file(), at.line()),
        None => defmt::error!("panic"),
    }
    registers::sleep()
}
