//! A buddy allocator over numbered blocks. Pure bookkeeping: it never touches the memory.

const NONE: u32 = u32::MAX;

/// Free lists by order, each a doubly linked list threaded through side arrays, so that taking,
/// giving back and merging cost a few array accesses and never allocate.
pub struct Buddy {
    heads: Vec<u32>,
    next: Vec<u32>,
    previous: Vec<u32>,
    /// The order of the free chunk that starts at this block, or `NOT_FREE`.
    free_order: Vec<u8>,
    order_max: u8,
}

const NOT_FREE: u8 = u8::MAX;

impl Buddy {
    /// All blocks free. `blocks` is a multiple of `2^order_max`.
    pub fn new(blocks: u32, order_max: u8) -> Self {
        assert!(blocks.is_multiple_of(1 << order_max), "{blocks} blocks, order {order_max}");
        let mut buddy = Self {
            heads: vec![NONE; usize::from(order_max) + 1],
            next: vec![NONE; blocks as usize],
            previous: vec![NONE; blocks as usize],
            free_order: vec![NOT_FREE; blocks as usize],
            order_max,
        };
        // Backwards, so that the lowest addresses are handed out first.
        for chunk in (0..blocks).step_by(1 << order_max).rev() {
            buddy.push(chunk, order_max);
        }
        buddy
    }

    /// Takes a chunk of `2^order` blocks; returns its first block.
    pub fn take(&mut self, order: u8) -> Option<u32> {
        let mut found = order;
        while found <= self.order_max && self.heads[usize::from(found)] == NONE {
            found += 1;
        }
        if found > self.order_max {
            return None;
        }
        let chunk = self.heads[usize::from(found)];
        self.unlink(chunk, found);
        while found > order {
            found -= 1;
            self.push(chunk + (1 << found), found);
        }
        Some(chunk)
    }

    /// Gives a chunk back, merging it with its free buddies.
    pub fn give(&mut self, mut chunk: u32, mut order: u8) {
        debug_assert_eq!(self.free_order[chunk as usize], NOT_FREE, "chunk {chunk} freed twice");
        while order < self.order_max {
            let buddy = chunk ^ (1 << order);
            if self.free_order[buddy as usize] != order {
                break;
            }
            self.unlink(buddy, order);
            chunk = chunk.min(buddy);
            order += 1;
        }
        self.push(chunk, order);
    }

    fn push(&mut self, chunk: u32, order: u8) {
        let head = self.heads[usize::from(order)];
        self.next[chunk as usize] = head;
        self.previous[chunk as usize] = NONE;
        if head != NONE {
            self.previous[head as usize] = chunk;
        }
        self.heads[usize::from(order)] = chunk;
        self.free_order[chunk as usize] = order;
    }

    fn unlink(&mut self, chunk: u32, order: u8) {
        let (next, previous) = (self.next[chunk as usize], self.previous[chunk as usize]);
        match previous {
            NONE => self.heads[usize::from(order)] = next,
            _ => self.next[previous as usize] = next,
        }
        if next != NONE {
            self.previous[next as usize] = previous;
        }
        self.free_order[chunk as usize] = NOT_FREE;
    }
}
