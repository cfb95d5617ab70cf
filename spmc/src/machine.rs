//! The machine: everything that is `unsafe`.

mod boot;
mod context;
mod hardware;
mod layout;
mod registers;
mod serve;
mod simd;
