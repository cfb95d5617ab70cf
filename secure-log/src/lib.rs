//! defmt logs of the secure worlds over one UART.
#![no_std]
