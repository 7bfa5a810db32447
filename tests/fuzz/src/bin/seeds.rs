//! Writes the seeds of every corpus: `cargo run -p fuzz --bin seeds`.

use std::io;

fn main() -> io::Result<()> {
    for target in fuzz::TARGETS {
        let folder = fuzz::corpus_dir(target);
        std::fs::create_dir_all(&folder)?;
        for (number, bytes) in fuzz::seeds::of(target).iter().enumerate() {
            std::fs::write(folder.join(format!("seed-{number:02}")), bytes)?;
        }
    }
    Ok(())
}
