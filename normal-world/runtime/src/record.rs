//! Records for the host, on UART 0: a record separator, a JSON object, a line feed (RFC 7464).

use alloc::{string::String, vec::Vec};
use core::ptr::NonNull;

use arm_pl011_uart::{PL011Registers, Uart, UniqueMmioPointer};
use flexserve_client::job::Record;
use flexserve_platform::UART_BASE;
use spin::Mutex;

const RECORD_SEPARATOR: u8 = 0x1e;

/// The UART, once [`init`] has run.
static UART: Mutex<Option<Uart<'static>>> = Mutex::new(None);

/// Takes the UART, which the firmware has configured.
pub fn init() {
    let registers = NonNull::new(UART_BASE as *mut PL011Registers).expect("the UART is not at address 0");
    // SAFETY: the platform's PL011 lies there, mapped as device memory, and nobody else in this program uses it.
    let uart = Uart::new(unsafe { UniqueMmioPointer::new(registers) });
    *UART.lock() = Some(uart);
}

/// Sends a record. Before [`init`] it is lost.
pub fn emit(record: &Record) {
    let Ok(json) = serde_json::to_vec(record) else { return };
    let mut bytes = Vec::with_capacity(json.len() + 2);
    bytes.push(RECORD_SEPARATOR);
    bytes.extend_from_slice(&json);
    bytes.push(b'\n');
    send(&bytes);
}

/// Sends a line of text. Before [`init`] it is lost.
pub fn line(text: &str) {
    send(alloc::format!("{text}\n").as_bytes());
}

fn send(bytes: &[u8]) {
    if let Some(uart) = UART.lock().as_mut() {
        for &byte in bytes {
            while uart.is_tx_fifo_full() {
                core::hint::spin_loop();
            }
            uart.write_word(byte);
        }
        while uart.is_busy() {
            core::hint::spin_loop();
        }
    }
}

/// Sends [`Record::Error`].
pub fn error(message: String) {
    emit(&Record::Error { message });
}
