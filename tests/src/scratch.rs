//! A place to work in, and judges of what is in it.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::spawn;

/// A temporary directory of one test. Kept when THINBAK_KEEP is set.
pub struct Scratch {
    dir: tempfile::TempDir,
}

impl Scratch {
    /// A fresh one, in TMPDIR.
    pub fn new() -> Result<Self> {
        let mut dir = tempfile::Builder::new().prefix("thinbak-test-").tempdir()?;
        dir.disable_cleanup(std::env::var_os("THINBAK_KEEP").is_some());
        Ok(Self { dir })
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A path in it.
    #[must_use]
    pub fn join(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

/// BLAKE3 of a whole file, holes read as zeros.
pub fn hash_file(path: &Path) -> Result<blake3::Hash> {
    let mut file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finalize()),
            read => hasher.update(buffer.get(..read).unwrap_or_default()),
        };
    }
}

/// Asks Debian's `thin_check` about a pool's metadata; an error carries all that it said.
pub fn thin_check(metadata: &Path) -> Result<()> {
    let mut command = Command::new("thin_check");
    let child = spawn(command.arg(metadata).stdout(Stdio::piped()).stderr(Stdio::piped()))
        .context("Debian's package thin-provisioning-tools has it")?;
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!(
            "thin_check of {}: {}{}",
            metadata.display(),
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}

/// The seed of a random test: THINBAK_SEED, else from the clock. Printed, so that a failure can be had again.
pub fn seed() -> Result<u64> {
    let seed = match std::env::var("THINBAK_SEED") {
        Ok(text) => text.parse().context("THINBAK_SEED is no number")?,
        Err(_) => rand::random(),
    };
    eprint_seed(seed);
    Ok(seed)
}

#[expect(clippy::print_stderr, reason = "the seed must be seen where the test failed")]
fn eprint_seed(seed: u64) {
    eprintln!("THINBAK_SEED={seed}");
}
