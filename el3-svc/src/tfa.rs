//! A runtime service of TF-A's BL31, linked in as a static library without a patch.

#[cfg(isolation = "gpt")]
use crate::gpt::{self, GranuleProtectionTables as Backend};
#[cfg(isolation = "stage-2")]
use crate::{normal_world, stage2::Stage2 as Backend};
use crate::{
    protocol::{Call, Caller, Service},
    psci::{self, Psci},
};
use core::ffi::{c_char, c_void};
use flexserve_abi::{
    el3::{self, Status, fid},
    log::World,
};
use flexserve_platform as platform;

/// The service.
pub static SERVICE: Service<Backend, Psci> = Service::with_cores(Backend::new(), platform::LENDABLE, Psci);

/// `rt_svc_desc_t` of TF-A's `include/common/runtime_svc.h`.
#[repr(C)]
struct RuntimeService {
    start_oen: u8,
    end_oen: u8,
    call_type: u8,
    name: *const c_char,
    init: Option<unsafe extern "C" fn() -> i32>,
    handle: unsafe extern "C" fn(
        fid: u32,
        x1: u64,
        x2: u64,
        x3: u64,
        x4: u64,
        cookie: *mut c_void,
        handle: *mut u64,
        flags: u64,
    ) -> *mut u64,
}

// SAFETY: read-only; the name points to a string literal.
unsafe impl Sync for RuntimeService {}

/// Owning entity 3, OEM, fast calls (SMCCC v1.4, table 6-2).
#[used]
#[unsafe(link_section = ".rt_svc_descs")]
static DESCRIPTOR: RuntimeService = RuntimeService {
    start_oen: 3,
    end_oen: 3,
    call_type: 1,
    name: c"flexserve".as_ptr(),
    init: Some(init),
    handle,
};

unsafe extern "C" fn init() -> i32 {
    // SAFETY: BL31 maps its device region, the secure UART in it, flat and as device memory before services start.
    unsafe { flexserve_secure_log::init(World::El3, platform::SECURE_UART_BASE as usize) };
    defmt::info!("granule service {=u32:x}, {=usize} lendable banks", el3::VERSION, platform::LENDABLE.len());
    #[cfg(isolation = "gpt")]
    if !gpt::is_supported() {
        defmt::error!(
            "the granule protection tables are not of 4 KB granules (GPCCR_EL3.PGS): there is no service"
        );
        // BL31 reports it on its console, goes on without the service, and answers its calls with -1.
        return -1;
    }
    #[cfg(isolation = "stage-2")]
    normal_world::init();
    0
}

/// The handler. `handle` is the caller's saved context, whose first words are x0, x1, … (`CTX_GPREGS_OFFSET` is 0).
unsafe extern "C" fn handle(
    fid: u32,
    _x1: u64,
    _x2: u64,
    _x3: u64,
    _x4: u64,
    _cookie: *mut c_void,
    handle: *mut u64,
    flags: u64,
) -> *mut u64 {
    #[cfg(feature = "bench")]
    // SAFETY: by this function's contract.
    if fid >= el3::peer::NULL && unsafe { crate::peer::handle(fid, handle) } {
        return handle;
    }
    // SMC_FROM_MASK of TF-A's smccc.h: bit 0 says not Secure, bit 5 then says Realm.
    let caller = match flags & 0x21 {
        0 => Caller::Secure,
        1 => Caller::NonSecure,
        _ => Caller::Realm,
    };
    // SAFETY: BL31 passes the context that it will restore, at least x0 to x30, and nothing else refers to it meanwhile.
    let registers = unsafe { &mut *handle.cast::<[u64; 18]>() };
    #[cfg(isolation = "stage-2")]
    if fid == el3::fid::STAGE2_ABORT
        && caller == Caller::NonSecure
        && let Some(x0) = normal_world::abort()
    {
        registers[0] = x0;
        return handle;
    }
    let [_, args @ ..] = registers;
    let reply = SERVICE.handle(caller, Call { fid, args });
    registers[0] = reply.0;
    registers[1] = reply.1;
    if fid == fid::CORE_RETURN && reply.0 == Status::Success.code() {
        // SAFETY: only a core that was lent, and so entered the Secure world there, can be handed back.
        unsafe { psci::leave() }
    }
    handle
}

/// `struct dyn_cfg_dtb_info_t` of TF-A's `fconf_dyn_cfg_getter.h`.
#[cfg(spmc_manifest_copied)]
#[repr(C)]
struct ConfigInfo {
    config_addr: usize,
    config_max_size: u32,
    config_id: u32,
    secondary_config_addr: usize,
}

/// Where the SPMC's manifest lies: the QEMU port of TF-A 2.12 does not say so to the SPMD by itself.
#[cfg(spmc_manifest_copied)]
#[unsafe(no_mangle)]
extern "C" fn dyn_cfg_dtb_info_getter(config_id: u32) -> *const ConfigInfo {
    /// `TOS_FW_CONFIG_ID` of TF-A's `tbbr_img_def_exp.h`.
    const TOS_FW_CONFIG_ID: u32 = 26;
    static MANIFEST: ConfigInfo = {
        let source = platform::SPMC_MANIFEST_SOURCE.expect("build.rs has seen it");
        ConfigInfo {
            config_addr: source.base as usize,
            config_max_size: source.size as u32,
            config_id: TOS_FW_CONFIG_ID,
            secondary_config_addr: platform::SPMC_MANIFEST.base as usize,
        }
    };
    if config_id == TOS_FW_CONFIG_ID { &MANIFEST } else { core::ptr::null() }
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo) -> ! {
    unsafe extern "C" {
        fn el3_panic() -> !;
    }
    if let Some(location) = info.location() {
        defmt::error!("panic at {=str}:{=u32}", location.file(), location.line());
    }
    // SAFETY: BL31's own panic path: reports on its console and stops the machine's core.
    unsafe { el3_panic() }
}
