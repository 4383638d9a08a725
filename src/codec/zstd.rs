//! One zstd frame per block, with reused contexts. Only what blocks need: the content fits one call, its length
//! stands in the frame's header, there is no dictionary and no checksum (the block's pointer has one).

pub use ::zstd::zstd_safe::compress_bound;
use ::zstd::zstd_safe::{self, CCtx, CParameter, DCtx, ErrorCode, ResetDirective};

use super::CodecError;

/// The first bytes of a frame. zstd skips frames of other kinds silently.
const MAGIC: [u8; 4] = 0xfd2f_b528_u32.to_le_bytes();

/// Limits of zstd for the content of its own blocks, of which a frame is made.
const MIN_PART_LEN: usize = 1 << 10;
const MAX_PART_LEN: usize = 1 << 17;

/// At its fastest true level zstd takes any 6 bytes that it has seen for a match. In planes of few different bytes
/// that is mostly chance, costs more than it saves and is slow to decode: only longer ones are worth it there.
const LEVEL_OF_LONG_MATCHES: i32 = 1;

/// Makes frames.
pub struct Compressor {
    context: CCtx<'static>,
    part_len: usize,
}

impl Compressor {
    /// A compressor with this level of zstd, for content that is filtered or not.
    pub fn new(level: i32, is_filtered: bool) -> Self {
        let mut context = CCtx::create();
        let mut set = |parameter| {
            context
                .set_parameter(parameter)
                .expect("zstd takes any level, and parameters between two frames");
        };
        set(CParameter::CompressionLevel(level));
        if is_filtered && level == LEVEL_OF_LONG_MATCHES {
            set(CParameter::MinMatch(7));
        }
        Self { context, part_len: 0 }
    }

    /// Compresses `content`, which is made of runs of `run_len` bytes with statistics of their own, into `out`, which
    /// has room for [`compress_bound`] bytes. Returns the length of the frame.
    ///
    /// Each run gets blocks of zstd, and so entropy tables, of its own: a run that looks random is stored as it is
    /// and costs nothing to decode, and the next one is coded as if it stood alone.
    ///
    /// # Errors
    /// `Zstd` if zstd has no memory.
    pub fn compress(&mut self, content: &[u8], run_len: usize, out: &mut [u8]) -> Result<usize, CodecError> {
        let n_parts = run_len.div_ceil(MAX_PART_LEN).max(1);
        let part_len = run_len.div_ceil(n_parts).max(MIN_PART_LEN);
        if part_len != self.part_len {
            let len = u32::try_from(part_len).expect("a part is 128 KiB or less");
            self.context.set_parameter(CParameter::MaxBlockSize(len)).map_err(encode_error)?;
            self.part_len = part_len;
        }
        self.context.compress2(out, content).map_err(|code| {
            // The frame that was begun is in the way of the next one.
            let _ = self.context.reset(ResetDirective::SessionOnly);
            encode_error(code)
        })
    }
}

/// Opens frames.
pub struct Decompressor {
    context: DCtx<'static>,
}

impl Decompressor {
    /// A decompressor.
    pub fn new() -> Self {
        Self { context: DCtx::create() }
    }

    /// Decompresses the one frame that is `stored` into all of `out`.
    ///
    /// The length that the frame claims is compared before anything is decoded. Memory does not depend on the
    /// frame: zstd decodes into `out` and looks back there, whatever window the frame asks for.
    ///
    /// # Errors
    /// `NoFrame`, `ContentLen` or `Trailing` if it is not one frame with this much content, else `Zstd`.
    pub fn decompress(&mut self, stored: &[u8], out: &mut [u8]) -> Result<(), CodecError> {
        let content_len = match zstd_safe::get_frame_content_size(stored) {
            Ok(Some(len)) if stored.starts_with(&MAGIC) => len,
            _ => return Err(CodecError::NoFrame),
        };
        if content_len != out.len() as u64 {
            return Err(CodecError::ContentLen { found: content_len, expected: out.len() });
        }
        let frame_len = zstd_safe::find_frame_compressed_size(stored).map_err(decode_error)?;
        if frame_len != stored.len() {
            return Err(CodecError::Trailing { frame_len, found: stored.len() });
        }
        let len = self.context.decompress(out, stored).map_err(decode_error)?;
        if len != out.len() {
            return Err(CodecError::ContentLen { found: len as u64, expected: out.len() });
        }
        Ok(())
    }
}

fn encode_error(code: ErrorCode) -> CodecError {
    CodecError::Zstd { action: "encode", what: zstd_safe::get_error_name(code) }
}

fn decode_error(code: ErrorCode) -> CodecError {
    CodecError::Zstd { action: "decode", what: zstd_safe::get_error_name(code) }
}
