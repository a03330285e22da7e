//! The images in `tests/fixtures` at the top of the repository.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use thinbak_engine::{
    BlockDevice, DeviceId, MemoryDevice,
    metadata_view::{MetadataView, Roots},
};

/// All cases.
pub(crate) const CASES: [&str; 7] =
    ["a-empty", "b-seq-64k", "c-nested-msnap", "e-1m-blocks", "f-fragmented-1t", "g1-needs-check", "h-data"];

pub(crate) fn id(number: u64) -> DeviceId {
    DeviceId::new(number).unwrap()
}

/// One case.
pub(crate) struct Fixture {
    dir: PathBuf,
    device: Arc<MemoryDevice>,
}

/// What a delta's file name says.
pub(crate) struct DeltaFile {
    pub(crate) name: String,
    pub(crate) left: DeviceId,
    pub(crate) right: DeviceId,
    pub(crate) metadata_snap: bool,
    pub(crate) verbose: bool,
}

impl Fixture {
    pub(crate) fn load(case: &str) -> Self {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(case);
        let image = zstd::decode_all(fs::File::open(dir.join("metadata.img.zst")).unwrap()).unwrap();
        let device = MemoryDevice::new(u64::try_from(image.len()).unwrap());
        for (offset, block) in (0..).step_by(4096).zip(image.chunks(4096)) {
            if block.iter().any(|byte| *byte != 0) {
                device.write_at(offset, block).unwrap();
            }
        }
        Self { dir, device: Arc::new(device) }
    }

    pub(crate) fn device(&self) -> Arc<MemoryDevice> {
        Arc::clone(&self.device)
    }

    pub(crate) fn view(&self, roots: Roots) -> MetadataView {
        MetadataView::open(self.device(), roots).unwrap()
    }

    /// The file of this name, or its compressed form.
    pub(crate) fn text(&self, name: &str) -> Option<String> {
        let bytes = match fs::File::open(self.dir.join(format!("{name}.zst"))) {
            Ok(file) => zstd::decode_all(file).unwrap(),
            Err(_) => fs::read(self.dir.join(name)).ok()?,
        };
        Some(String::from_utf8(bytes).unwrap())
    }

    /// All deltas that were recorded.
    pub(crate) fn deltas(&self) -> Vec<DeltaFile> {
        let names =
            fs::read_dir(&self.dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names
            .filter_map(|name| {
                let name = name.trim_end_matches(".zst").to_owned();
                let rest = name.strip_prefix("delta-")?.strip_suffix(".xml")?;
                let (rest, verbose) =
                    rest.strip_suffix(".verbose").map_or((rest, false), |rest| (rest, true));
                let (rest, metadata_snap) =
                    rest.strip_prefix("msnap-").map_or((rest, false), |rest| (rest, true));
                let (left, right) = rest.split_once('-')?;
                let (left, right) = (id(left.parse().unwrap()), id(right.parse().unwrap()));
                Some(DeltaFile { name, left, right, metadata_snap, verbose })
            })
            .collect()
    }
}
