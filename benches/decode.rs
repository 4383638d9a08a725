//! How fast the blocks of a compressed array can be decoded, were nothing else to be done: no file read, no checksum
//! computed, no memory asked for. The benchmarks of compressed arrays compare with it (`limits.py`).
//!
//!     decode STORE ARRAY [THREADS]
//!
//! Keeps the array's blocks in memory, decodes all of them on all cores, or on as many as there are threads, at each
//! line on stdin, and prints the seconds that took.

use std::env;
use std::error::Error;
use std::io::{self, BufRead, Write};
use std::path::Path;
use std::sync::Mutex;
use std::thread;
use std::time::Instant;

use numpack::codec::{Decoder, Encoder};
use numpack::format::BlockKind;
use numpack::store::{Access, Store};

/// Blocks that a thread takes at a time.
const BATCH: usize = 16;

fn main() -> Result<(), Box<dyn Error>> {
    let usage = "usage: decode STORE ARRAY [THREADS]";
    let mut arguments = env::args().skip(1);
    let (store, name) = (arguments.next().ok_or(usage)?, arguments.next().ok_or(usage)?);
    let n_threads = match arguments.next() {
        Some(n_threads) => n_threads.parse()?,
        None => thread::available_parallelism()?.get(),
    };
    let array = Store::open(Path::new(&store), Access::Read)?.array(&name)?;
    let codec = array.codec().ok_or("the array is not compressed")?;
    let itemsize = array.dtype().itemsize();
    let mut elements = vec![0; usize::try_from(array.nbytes())?];
    array.read_into(&mut elements)?;

    // Encoding gives the same bytes each time, so these are the blocks that the store has.
    let block_len = codec.block_len as usize;
    let mut encoder = Encoder::new(codec, itemsize);
    let mut blocks = Vec::new();
    for raw in elements.chunks(block_len) {
        let (kind, stored) = encoder.encode(raw)?;
        blocks.push((kind, stored.to_vec()));
    }
    let mut decoders: Vec<_> = (0..n_threads).map(|_| Decoder::new()).collect();
    for line in io::stdin().lock().lines() {
        line?;
        let start = Instant::now();
        decode(&blocks, itemsize, block_len, &mut decoders, &mut elements);
        println!("{}", start.elapsed().as_secs_f64());
        io::stdout().flush()?;
    }
    Ok(())
}

/// Decodes all blocks into their places in `out`, with one thread for each decoder.
fn decode(
    blocks: &[(BlockKind, Vec<u8>)],
    itemsize: u64,
    block_len: usize,
    decoders: &mut [Decoder],
    out: &mut [u8],
) {
    let batches = Mutex::new(blocks.chunks(BATCH).zip(out.chunks_mut(BATCH * block_len)));
    thread::scope(|scope| {
        for decoder in decoders {
            scope.spawn(|| {
                loop {
                    let batch = batches.lock().expect("no thread panics with the lock").next();
                    let Some((blocks, out)) = batch else { break };
                    for ((kind, stored), out) in blocks.iter().zip(out.chunks_mut(block_len)) {
                        decoder.decode(*kind, itemsize, stored, out).expect("it was encoded by us");
                    }
                }
            });
        }
    });
}
