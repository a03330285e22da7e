//! Reading the shape of a pool.

use thinbak_proto::{
    Failed, FailureKind, SHAPE_VOLUME,
    v1::{Generation, GenerationSelector, VolumeName},
};

use super::{MAX_BYTES, Shape};
use crate::{
    repository_client::RepositoryConnection,
    source::GenerationSource,
    stream::{Content, Source as _},
};

/// A shape of the pool `name` (POOL or HOST/POOL) and the generation that holds it.
pub(crate) async fn fetch(
    connection: &RepositoryConnection,
    name: &str,
    host: String,
    which: GenerationSelector,
) -> Result<(Shape, Generation), Failed> {
    let volume = VolumeName { name: format!("{name}/{SHAPE_VOLUME}"), host };
    let held = connection.hold_one(volume, which).await.map_err(|failed| match failed.kind {
        FailureKind::NotFound => {
            let message = format!("the repository has no shape of pool {name}: {}", failed.message);
            Failed::new(FailureKind::NotFound, message).with_hint(
                "it is stored with each backup of a volume of the pool; name the pool as HOST/POOL",
            )
        }
        _ => failed,
    })?;
    let generation = held.generations().first().cloned().unwrap_or_default();
    let size = usize::try_from(generation.size_bytes).ok().filter(|_| generation.size_bytes <= MAX_BYTES);
    let Some(size) = size else {
        let message = format!("the shape of pool {name} has {} bytes", generation.size_bytes);
        return Err(Failed::new(FailureKind::Failed, message));
    };
    let mut bytes = vec![0; size];
    let mut source = GenerationSource::new(connection.content(), None, &generation, None)?;
    while let Some(batch) = held.during(source.next()).await? {
        for extent in batch {
            let Content::Data(data) = &extent.content else { continue };
            let place = usize::try_from(extent.offset).ok().and_then(|at| {
                let end = at.checked_add(data.len())?;
                bytes.get_mut(at..end)
            });
            place
                .ok_or_else(|| Failed::new(FailureKind::Failed, "the server sent more than the shape has"))?
                .copy_from_slice(data);
        }
    }
    Ok((Shape::decode(&bytes)?, generation))
}
