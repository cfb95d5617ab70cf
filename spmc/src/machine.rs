//! The machine: everything that is `unsafe`.

mod boot;
mod context;
mod gic;
mod hardware;
mod layout;
mod lent;
mod registers;
mod serve;
mod simd;
