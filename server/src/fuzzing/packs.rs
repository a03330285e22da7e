//! Packs of any bytes.

use super::Input;
use crate::store;

/// Reads one pack that an input describes: its header, its index, a scan, and every record that any of them
/// finds.
pub fn packs(data: &[u8]) {
    store::fuzzing::read_pack(&mut Input::new(data));
}

/// Opens a store over packs that an input describes, in `dir`, writes to it and opens it again. `dir` is an
/// existing folder whose content is given up.
pub fn recovery(dir: &std::path::Path, data: &[u8]) {
    store::fuzzing::recover_packs(dir, &mut Input::new(data));
}
