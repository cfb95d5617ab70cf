//! Files that QEMU hands to the guest (`-fw_cfg name=…`), by the memory-mapped interface: a data register at offset 0,
//! a big-endian selector at offset 8 (QEMU, docs/specs/fw_cfg).

use alloc::{format, string::String, vec::Vec};

use flexserve_platform::FW_CFG_BASE;

const SELECTOR_OFFSET: u64 = 8;
const SIGNATURE: u16 = 0x0000;
const FILE_DIRECTORY: u16 = 0x0019;
/// Size, selector and reserved field of a directory entry, in bytes.
const ENTRY_HEADER: usize = 8;
const NAME_SIZE: usize = 56;
/// Longest file that is read.
const MAX_FILE: usize = 1 << 20;

/// Reads the file `name`. `None` if the platform has no `fw_cfg` device, none answers, or it has no such file.
///
/// # Errors
///
/// The file is longer than 1 MiB.
pub fn read_file(name: &str) -> Result<Option<Vec<u8>>, String> {
    // Where the platform names no device, an access might end in a fault, or reach another device.
    let Some(device) = FW_CFG_BASE.map(Device) else { return Ok(None) };
    let mut signature = [0; 4];
    device.select(SIGNATURE);
    device.read(&mut signature);
    if &signature != b"QEMU" {
        return Ok(None);
    }
    let Some((selector, size)) = device.find(name) else { return Ok(None) };
    if size > MAX_FILE {
        return Err(format!("the fw_cfg file {name} has {size} bytes, more than {MAX_FILE}"));
    }
    let mut contents = alloc::vec![0; size];
    device.select(selector);
    device.read(&mut contents);
    Ok(Some(contents))
}

/// The device, by its address.
#[derive(Clone, Copy)]
struct Device(u64);

impl Device {
    /// Selector and size of a file.
    fn find(self, name: &str) -> Option<(u16, usize)> {
        self.select(FILE_DIRECTORY);
        let mut count = [0; 4];
        self.read(&mut count);
        for _ in 0..u32::from_be_bytes(count) {
            let mut header = [0; ENTRY_HEADER];
            let mut entry_name = [0; NAME_SIZE];
            self.read(&mut header);
            self.read(&mut entry_name);
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

    fn select(self, selector: u16) {
        let register = (self.0 + SELECTOR_OFFSET) as *mut u16;
        // SAFETY: the platform's fw_cfg selector, mapped as device memory.
        unsafe { register.write_volatile(selector.to_be()) };
    }

    fn read(self, bytes: &mut [u8]) {
        for byte in bytes {
            // SAFETY: the platform's fw_cfg data register, mapped as device memory; reading advances its cursor.
            *byte = unsafe { (self.0 as *const u8).read_volatile() };
        }
    }
}
