//! Files that QEMU hands to the guest (`-fw_cfg name=…`), by the memory-mapped interface: a data register at offset 0,
//! a big-endian selector at offset 8 (QEMU, docs/specs/fw_cfg).

use alloc::{format, string::String, vec::Vec};

use flexserve_platform::FW_CFG_BASE;

const SELECTOR_OFFSET: u64 = 8;
const SIGNATURE: u16 = 0x0000;
const CORE_COUNT: u16 = 0x0005;
const FILE_DIRECTORY: u16 = 0x0019;
/// Size, selector and reserved field of a directory entry, in bytes.
const ENTRY_HEADER: usize = 8;
const NAME_SIZE: usize = 56;
/// Longest file that is read.
const MAX_FILE: usize = 1 << 20;

/// Cores of the machine.
pub fn core_count() -> usize {
    let mut count = [0; 2];
    select(CORE_COUNT);
    read(&mut count);
    u16::from_le_bytes(count).into()
}

/// Reads the file `name`.
///
/// # Errors
///
/// There is no `fw_cfg` device, no such file, or it is longer than 1 MiB.
pub fn read_file(name: &str) -> Result<Vec<u8>, String> {
    let mut signature = [0; 4];
    select(SIGNATURE);
    read(&mut signature);
    if &signature != b"QEMU" {
        return Err("no fw_cfg device answers: the payload takes its job from QEMU's -fw_cfg".into());
    }
    let (selector, size) = find(name)
        .ok_or_else(|| format!("fw_cfg has no file {name}: start QEMU with -fw_cfg name={name},…"))?;
    if size > MAX_FILE {
        return Err(format!("the fw_cfg file {name} has {size} bytes, more than {MAX_FILE}"));
    }
    let mut contents = alloc::vec![0; size];
    select(selector);
    read(&mut contents);
    Ok(contents)
}

/// Selector and size of a file.
fn find(name: &str) -> Option<(u16, usize)> {
    select(FILE_DIRECTORY);
    let mut count = [0; 4];
    read(&mut count);
    for _ in 0..u32::from_be_bytes(count) {
        let mut header = [0; ENTRY_HEADER];
        let mut entry_name = [0; NAME_SIZE];
        read(&mut header);
        read(&mut entry_name);
        let length = entry_name.iter().position(|&b| b == 0).unwrap_or(NAME_SIZE);
        if &entry_name[..length] == name.as_bytes() {
            let [s0, s1, s2, s3, selector0, selector1, ..] = header;
            return Some((
                u16::from_be_bytes([selector0, selector1]),
                u32::from_be_bytes([s0, s1, s2, s3]) as usize,
            ));
        }
    }
    None
}

fn select(selector: u16) {
    let register = (FW_CFG_BASE + SELECTOR_OFFSET) as *mut u16;
    // SAFETY: the platform's fw_cfg selector, mapped as device memory.
    unsafe { register.write_volatile(selector.to_be()) };
}

fn read(bytes: &mut [u8]) {
    for byte in bytes {
        // SAFETY: the platform's fw_cfg data register, mapped as device memory; reading advances its cursor.
        *byte = unsafe { (FW_CFG_BASE as *const u8).read_volatile() };
    }
}
