//! Archives that are changed and stay archives: by blocks, with checksums that are right.

#[path = "../../support/archives.rs"]
mod made;

use made::sum;

const BLOCK: usize = 512;
/// Where a header says that it is one.
const MAGIC: usize = 257;

/// Changes an archive for libFuzzer; the new length. What the default changes would break first, the division into blocks
/// and the checksums of headers, is kept most of the time.
pub fn mutate(data: &mut [u8], size: usize, most: usize, seed: u32) -> usize {
    let mut chance = Chance(u64::from(seed) | 1 << 32);
    let blocks = size / BLOCK;
    let size = match chance.below(10) {
        _ if blocks == 0 => libfuzzer_sys::fuzzer_mutate(data, size, most),
        0 => libfuzzer_sys::fuzzer_mutate(data, size, most),
        1 if size + BLOCK <= most => twice(data, size, chance.below(blocks), chance.below(blocks)),
        2 if blocks > 2 => lose(data, size, chance.below(blocks)),
        3 => swap(data, size, chance.below(blocks), chance.below(blocks)),
        _ => change(data, size, &mut chance),
    };
    if chance.below(16) > 0 {
        set_sums(&mut data[..size]);
    }
    size
}

/// Makes the checksums of all headers right, wherever they are: also of those in the raw blocks of a frame of zstd.
fn set_sums(data: &mut [u8]) {
    let mut at = 0;
    while let Some(block) = data[at..].first_chunk_mut::<BLOCK>() {
        let found = is_header(block);
        if found {
            sum(block);
        }
        at += if found { BLOCK } else { 1 };
    }
}

fn is_header(block: &[u8]) -> bool {
    block[MAGIC..].starts_with(b"ustar")
}

/// A copy of a block comes before another one.
fn twice(data: &mut [u8], size: usize, from: usize, to: usize) -> usize {
    let copy = data[from * BLOCK..][..BLOCK].to_vec();
    data.copy_within(to * BLOCK..size, (to + 1) * BLOCK);
    data[to * BLOCK..][..BLOCK].copy_from_slice(&copy);
    size + BLOCK
}

fn lose(data: &mut [u8], size: usize, block: usize) -> usize {
    data.copy_within((block + 1) * BLOCK..size, block * BLOCK);
    size - BLOCK
}

fn swap(data: &mut [u8], size: usize, one: usize, other: usize) -> usize {
    let copy = data[one * BLOCK..][..BLOCK].to_vec();
    data.copy_within(other * BLOCK..(other + 1) * BLOCK, one * BLOCK);
    data[other * BLOCK..][..BLOCK].copy_from_slice(&copy);
    size
}

/// The parts of a header (tar(5)), and all of it.
const FIELDS: [(usize, usize); 12] = [
    (0, 100),
    (100, 8),
    (108, 8),
    (116, 8),
    (124, 12),
    (136, 12),
    (156, 1),
    (157, 100),
    (329, 8),
    (337, 8),
    (345, 155),
    (0, BLOCK),
];

/// A part of a block is another one, no longer than its place.
fn change(data: &mut [u8], size: usize, chance: &mut Chance) -> usize {
    let block = &mut data[chance.below(size / BLOCK) * BLOCK..][..BLOCK];
    let (start, length) = match is_header(block) {
        true => FIELDS[chance.below(FIELDS.len())],
        false => (0, BLOCK),
    };
    let field = &mut block[start..start + length];
    let said = field.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let now = libfuzzer_sys::fuzzer_mutate(field, said, length);
    field[now..].fill(0);
    size
}

/// Numbers that a seed gives; xorshift64*.
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % limit
    }
}
