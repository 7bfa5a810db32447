//! The mapping behind an arena: anonymous memory, on huge pages where the host has them.
//!
//! Unsafe code lives here: mapping and unmapping.
#![allow(unsafe_code)]

use std::io;
use std::ptr::NonNull;

const HUGE_PAGE: usize = 2 << 20;

/// One anonymous mapping, unmapped on drop.
pub struct Map {
    base: NonNull<u8>,
    len: usize,
    mapped: NonNull<u8>,
    mapped_len: usize,
}

impl Map {
    /// Maps at least `len` bytes aligned to `align` (a power of two).
    ///
    /// # Errors
    /// What `mmap(2)` says.
    #[cfg(not(miri))]
    pub fn new(len: usize, align: usize) -> io::Result<Self> {
        let align = align.max(HUGE_PAGE);
        let mapped_len = len + align;
        // SAFETY: a fresh anonymous private mapping at an address of the kernel's choice; no
        // existing memory is touched.
        let mapped = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                mapped_len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let mapped = NonNull::new(mapped.cast::<u8>()).expect("mmap never maps address zero");
        let skip = mapped.as_ptr().align_offset(align);
        // SAFETY: `skip < align` and the mapping is `len + align` bytes long.
        let base = unsafe { mapped.add(skip) };
        // SAFETY: the range lies within the mapping just made. The advice may be refused: then the
        // arena sits on small pages, which costs speed and nothing else.
        unsafe { libc::madvise(base.as_ptr().cast(), len, libc::MADV_HUGEPAGE) };
        Ok(Self { base, len, mapped, mapped_len })
    }

    /// Under Miri memory comes from the allocator, so that it can be watched.
    #[cfg(miri)]
    pub fn new(len: usize, align: usize) -> io::Result<Self> {
        let layout = std::alloc::Layout::from_size_align(len, align).expect("a sane layout");
        // SAFETY: the layout is not empty.
        let base = NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) }).expect("memory");
        Ok(Self { base, len, mapped: base, mapped_len: align })
    }

    /// The first byte.
    pub fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Usable bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Touches every page, so that no page fault is taken later.
    pub fn populate(&self) {
        #[cfg(not(miri))]
        // SAFETY: the range lies within our mapping; populating does not change its contents.
        // Kernels before 5.14 refuse: then pages are taken when first touched.
        unsafe {
            libc::madvise(self.base.as_ptr().cast(), self.len, libc::MADV_POPULATE_WRITE)
        };
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        #[cfg(not(miri))]
        // SAFETY: exactly the mapping made in `new`; the arena that owns it is gone, and with it
        // every handle that could point into it.
        unsafe {
            libc::munmap(self.mapped.as_ptr().cast(), self.mapped_len)
        };
        #[cfg(miri)]
        // SAFETY: allocated in `new` with this very layout (`mapped_len` keeps the alignment).
        unsafe {
            let layout = std::alloc::Layout::from_size_align(self.len, self.mapped_len);
            std::alloc::dealloc(self.mapped.as_ptr(), layout.expect("the layout of `new`"));
        };
    }
}
