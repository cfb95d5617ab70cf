//! The model's disk: the first virtio block device on a memory-mapped transport.

use alloc::{alloc::alloc_zeroed, format, string::String, vec::Vec};
use core::{alloc::Layout, ptr::NonNull};

use flexserve_abi::GRANULE_SIZE;
use flexserve_platform::{VIRTIO_MMIO_BASE, VIRTIO_MMIO_COUNT};
use virtio_drivers::{
    BufferDirection, Hal, PAGE_SIZE, PhysAddr,
    device::blk::{BlkReq, BlkResp, SECTOR_SIZE, VirtIOBlk},
    transport::{
        DeviceType, Transport,
        mmio::{MmioTransport, VirtIOHeader},
    },
};

const TRANSPORT_SIZE: usize = 0x200;
const SECTORS_PER_GRANULE: usize = GRANULE_SIZE / SECTOR_SIZE;
/// Requests that the device works on at once; each takes three descriptors of a queue of 16.
const IN_FLIGHT: usize = 5;

/// Physical addresses are virtual ones here, and the device is coherent.
struct Identity;

// SAFETY: pages come from the heap, page aligned, zeroed and exclusive; memory is mapped one to one and devices are
// coherent, so a buffer's address is what the device uses.
unsafe impl Hal for Identity {
    fn dma_alloc(pages: usize, _direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let layout = dma_layout(pages);
        // SAFETY: the layout is not empty.
        let pointer =
            NonNull::new(unsafe { alloc_zeroed(layout) }).expect("the heap has room for virtqueues");
        (pointer.as_ptr() as PhysAddr, pointer)
    }

    unsafe fn dma_dealloc(_paddr: PhysAddr, vaddr: NonNull<u8>, pages: usize) -> i32 {
        // SAFETY: the caller passes what `dma_alloc` gave.
        unsafe { alloc::alloc::dealloc(vaddr.as_ptr(), dma_layout(pages)) };
        0
    }

    unsafe fn mmio_phys_to_virt(paddr: PhysAddr, _size: usize) -> NonNull<u8> {
        NonNull::new(paddr as *mut u8).expect("no device lies at address 0")
    }

    unsafe fn share(buffer: NonNull<[u8]>, _direction: BufferDirection) -> PhysAddr {
        buffer.cast::<u8>().as_ptr() as PhysAddr
    }

    unsafe fn unshare(_paddr: PhysAddr, _buffer: NonNull<[u8]>, _direction: BufferDirection) {}
}

fn dma_layout(pages: usize) -> Layout {
    Layout::from_size_align(pages.max(1) * PAGE_SIZE, PAGE_SIZE).expect("virtqueues are small")
}

/// A disk that can be read.
pub struct Disk {
    device: VirtIOBlk<Identity, MmioTransport<'static>>,
}

impl Disk {
    /// Finds the disk.
    ///
    /// # Errors
    ///
    /// There is none, or it does not initialise.
    pub fn open() -> Result<Self, String> {
        for slot in 0..VIRTIO_MMIO_COUNT {
            let address = VIRTIO_MMIO_BASE + slot * TRANSPORT_SIZE as u64;
            let header = NonNull::new(address as *mut VirtIOHeader).expect("no transport lies at address 0");
            // SAFETY: the platform has a transport there, mapped as device memory, used by nobody else.
            let Ok(transport) = (unsafe { MmioTransport::new(header, TRANSPORT_SIZE) }) else { continue };
            if transport.device_type() == DeviceType::Block {
                let device =
                    VirtIOBlk::new(transport).map_err(|e| format!("the model's disk does not start: {e}"))?;
                return Ok(Self { device });
            }
        }
        Err("no virtio block device: the model is passed as one (-device virtio-blk-device)".into())
    }

    /// Bytes on the disk: the container's, rounded up to a sector.
    pub fn size(&self) -> u64 {
        self.device.capacity() * SECTOR_SIZE as u64
    }

    /// Reads consecutive bytes at `offset`, a multiple of 512, into buffers that may lie anywhere.
    ///
    /// # Errors
    ///
    /// The range is not aligned or not on the disk, or the device failed.
    pub fn read<'a>(
        &mut self,
        offset: u64,
        buffers: impl ExactSizeIterator<Item = &'a mut [u8; GRANULE_SIZE]>,
    ) -> Result<(), String> {
        let bytes = (buffers.len() * GRANULE_SIZE) as u64;
        let on_disk = offset.checked_add(bytes).is_some_and(|end| end <= self.size());
        if !offset.is_multiple_of(SECTOR_SIZE as u64) || !on_disk {
            return Err(format!(
                "the model's disk has {} bytes, so {bytes} at {offset} cannot be read: the container is truncated",
                self.size()
            ));
        }
        let mut sector = (offset / SECTOR_SIZE as u64) as usize;
        let mut buffers = buffers.peekable();
        while buffers.peek().is_some() {
            let mut batch: Vec<Request> = buffers.by_ref().take(IN_FLIGHT).map(Request::new).collect();
            self.read_batch(sector, &mut batch)
                .map_err(|e| format!("reading the model's disk failed: {e}"))?;
            sector += batch.len() * SECTORS_PER_GRANULE;
        }
        Ok(())
    }

    /// Has the device work on all requests at once.
    fn read_batch(&mut self, sector: usize, batch: &mut [Request<'_>]) -> virtio_drivers::Result {
        for (i, request) in batch.iter_mut().enumerate() {
            let Request { head, buffer, status, token } = request;
            let sector = sector + i * SECTORS_PER_GRANULE;
            // SAFETY: the request is not touched before the loop below completes it.
            *token = unsafe { self.device.read_blocks_nb(sector, head, &mut buffer[..], status) }?;
        }
        for _ in 0..batch.len() {
            let token = loop {
                match self.device.peek_used() {
                    Some(token) => break token,
                    None => core::hint::spin_loop(),
                }
            };
            let request = batch.iter_mut().find(|request| request.token == token);
            let Request { head, buffer, status, .. } = request.ok_or(virtio_drivers::Error::WrongToken)?;
            // SAFETY: these are the buffers that were passed when the device answered this token.
            unsafe { self.device.complete_read_blocks(token, head, &mut buffer[..], status) }?;
        }
        Ok(())
    }
}

/// One read under way.
struct Request<'a> {
    head: BlkReq,
    buffer: &'a mut [u8; GRANULE_SIZE],
    status: BlkResp,
    token: u16,
}

impl<'a> Request<'a> {
    fn new(buffer: &'a mut [u8; GRANULE_SIZE]) -> Self {
        Self { head: BlkReq::default(), buffer, status: BlkResp::default(), token: 0 }
    }
}
