//! Layers as they lie in registries: plain, or compressed by gzip or zstd. The first bytes say
//! which.

use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

const GZIP: [u8; 2] = [0x1F, 0x8B];
const ZSTD: [u8; 4] = [0x28, 0xB5, 0x2F, 0xFD];
/// Frames of this kind hold nothing of the layer (RFC 8878, 3.1.2); one may come first.
const ZSTD_SKIPPABLE: [u8; 3] = [0x2A, 0x4D, 0x18];

/// So much of what was read before a frame may refer to, and so much memory it takes: what `zstd -19` and the encoders of
/// container tools use at most.
const LARGEST_WINDOW: u64 = 32 << 20;

/// The archive itself, whatever it is compressed by.
///
/// # Errors
/// When the first bytes cannot be read.
pub fn plain<'a>(input: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut input = BufReader::with_capacity(128 * 1024, input);
    let mut head = [0; 4];
    let length = fill(&mut input, &mut head)?;
    let whole = BufReader::with_capacity(128 * 1024, io::Cursor::new(head).take(length as u64).chain(input));
    Ok(match head {
        head if length >= 2 && head[..2] == GZIP => Box::new(MultiGzDecoder::new(whole)),
        head if length == 4 && (head == ZSTD || head[1..] == ZSTD_SKIPPABLE) => {
            Box::new(Frames { state: State::Between(whole) })
        }
        _ => Box::new(whole),
    })
}

/// Reads until nothing comes or nothing fits: how much.
///
/// # Errors
/// Those of reading.
pub fn fill(input: &mut impl Read, head: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < head.len() {
        match input.read(&mut head[done..]) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(0) => break,
            read => done += read?,
        }
    }
    Ok(done)
}

/// The frames of a zstd file, one after the other.
struct Frames<R: BufRead> {
    state: State<R>,
}

enum State<R: BufRead> {
    Between(R),
    Inside(R, Box<FrameDecoder>),
    /// At the end, or after an error.
    Ended,
}

impl<R: BufRead> Read for Frames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match std::mem::replace(&mut self.state, State::Ended) {
                State::Ended => return Ok(0),
                State::Between(mut input) => {
                    if input.fill_buf()?.is_empty() {
                        return Ok(0);
                    }
                    self.state = begin(input)?;
                }
                State::Inside(mut input, mut decoder) => {
                    let read = decode(&mut input, &mut decoder, buffer)?;
                    if read > 0 || buffer.is_empty() {
                        self.state = State::Inside(input, decoder);
                        return Ok(read);
                    }
                    check_sum(&decoder)?;
                    self.state = State::Between(input);
                }
            }
        }
    }
}

/// Begins a frame, or passes over one that holds nothing.
fn begin<R: BufRead>(mut input: R) -> io::Result<State<R>> {
    let mut decoder = FrameDecoder::new();
    decoder.set_max_window_size(LARGEST_WINDOW);
    match decoder.init(&mut input) {
        Ok(()) => Ok(State::Inside(input, Box::new(decoder))),
        Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame { length, .. })) => {
            let skipped = io::copy(&mut (&mut input).take(length.into()), &mut io::sink())?;
            if skipped < length.into() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            Ok(State::Between(input))
        }
        Err(FrameDecoderError::WindowSizeTooBig { requested, .. }) => Err(io::Error::other(format!(
            "its compression needs {} MiB of memory, more than {} (zstd without --long and --ultra is enough)",
            requested >> 20,
            LARGEST_WINDOW >> 20
        ))),
        Err(error) => Err(io::Error::other(error)),
    }
}

/// Some bytes of a frame; none at its end.
fn decode(input: &mut impl Read, decoder: &mut FrameDecoder, buffer: &mut [u8]) -> io::Result<usize> {
    while decoder.can_collect() == 0 && !decoder.is_finished() {
        decoder.decode_blocks(&mut *input, BlockDecodingStrategy::UptoBlocks(1)).map_err(io::Error::other)?;
    }
    decoder.read(buffer)
}

fn check_sum(decoder: &FrameDecoder) -> io::Result<()> {
    match (decoder.get_checksum_from_data(), decoder.get_calculated_checksum()) {
        (Some(said), Some(found)) if said != found => Err(io::Error::other("the checksum of its compression is wrong")),
        _ => Ok(()),
    }
}
