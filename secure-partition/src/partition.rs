//! The entry, and the way to the SPMC.

use crate::{
    reply::{Reply, failure},
    service::{Link, Message, Resources, serve},
};
use core::cell::RefCell;
use flexserve_abi::{
    ffa::{LLM_PARTITION, LLM_SERVICE, NORMAL_WORLD, UuidRegisters},
    isa::IsaFeatures,
    service::Status,
};
use flexserve_kernels::isa::Isa;
use flexserve_llm::workers::{Alone, Workers};
use flexserve_partition_runtime::{
    Borrower, Request, wait,
    workers::{Cores, PARTS},
};
use static_cell::ConstStaticCell;

/// Where a prompt is copied to.
static PROMPT: ConstStaticCell<[u8; 1 << 20]> = ConstStaticCell::new([0; 1 << 20]);

/// The cores that the normal world has lent, and the one that runs this.
#[derive(Debug)]
struct Lent(Cores);

impl Workers for Lent {
    fn cores(&self) -> usize {
        self.0.count()
    }

    fn run(&self, parts: usize, work: &(dyn Fn(usize) + Sync)) {
        // More parts than one job can have go together.
        let at_once = parts.div_ceil(PARTS).max(1);
        self.0.run(parts.div_ceil(at_once), &|job| {
            (job * at_once..parts.min((job + 1) * at_once)).for_each(work);
        });
    }
}

/// The request that is being answered.
struct Caller(Request);

impl Caller {
    /// Refuses what is not for this service, up to a request that is.
    fn proper(mut self) -> (Self, Message) {
        while self.0.source != NORMAL_WORLD || self.0.uuid != UuidRegisters::new(LLM_SERVICE) {
            self.0 = self.0.respond_and_wait(failure(Status::NotSupported));
        }
        let [op, args @ ..] = self.0.args;
        (self, Message { op, args })
    }
}

impl Link for Caller {
    fn exchange(&mut self, reply: Reply) -> Option<Message> {
        let (caller, message) = Self(self.0.respond_and_wait(reply)).proper();
        *self = caller;
        Some(message)
    }
}

#[allow(unsafe_code, reason = "the symbol that the runtime's entry calls")]
#[unsafe(no_mangle)]
extern "Rust" fn partition_main(features: IsaFeatures) -> ! {
    #[allow(unsafe_code, reason = "the SPMC's word for what the CPU has")]
    // SAFETY: the SPMC read the features from the ID registers of the cores that run this partition.
    let isa = unsafe { Isa::from_features(features.bits()) };
    let mut borrower = Borrower::new(LLM_PARTITION).expect("the SPMC maps this partition's buffers");
    let lent = Cores::employ().map(Lent);
    if lent.is_err() {
        defmt::warn!("lent cores cannot help");
    }
    let workers: &dyn Workers = lent.as_ref().map_or(&Alone, |lent| lent);
    defmt::info!("ready");
    let (mut link, first) = Caller(wait()).proper();
    let own = Resources { prompt: RefCell::new(PROMPT.take()), isa, features, workers };
    serve(&mut borrower, &mut link, first, own);
    unreachable!("the link never ends")
}
