//! Making, listing, checking, growing and removing pools.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use thinbak_engine::{
    BlockDevice, BlockSize,
    check::{self, CheckReport},
    embedded::{CreateOptions, EmbeddedPool},
};
use thinbak_proto::{
    Failed, FailureKind,
    v1::{
        CheckPoolResponse, CreatePoolRequest, PoolDamage, PoolInfo, ResizePoolRequest,
        check_pool_request::Source,
    },
};

use super::{
    PoolManager,
    failure::{failed as engine_failed, hint_at_agent, of_check, while_doing},
    info, kernel,
    place::{PoolSpec, check_name},
    settings, text,
};

const DEFAULT_BLOCK_BYTES: u64 = 64 * 1024;
const METADATA_BLOCK_BYTES: usize = 4096;
/// A check of a pool in use is repeated this often when commits get in between.
const CHECK_ATTEMPTS: u32 = 5;

pub(super) fn create(manager: &PoolManager, request: &CreatePoolRequest) -> Result<PoolInfo, Failed> {
    let plan = Plan::of(manager, request)?;
    if plan.register {
        register(manager, &plan)?;
    }
    let make = || {
        if let Some(parent) = plan.dir.parent() {
            std::fs::create_dir_all(parent).map_err(|error| {
                Failed::new(FailureKind::Failed, format!("make directory {}: {error}", parent.display()))
            })?;
        }
        EmbeddedPool::create(&plan.dir, plan.options.clone())
            .map_err(while_doing(|| format!("create pool {}", request.pool)))
    };
    match make() {
        Ok(pool) => Ok(info::embedded(&manager.insert(pool))),
        Err(failed) => {
            if plan.register
                && let Err(error) = unregister(manager, &plan.name)
            {
                tracing::warn!(pool = plan.name, %error, "the pool's name is left in the list");
            }
            Err(failed)
        }
    }
}

/// What to make where.
struct Plan {
    name: String,
    dir: PathBuf,
    register: bool,
    options: CreateOptions,
}

impl Plan {
    fn of(manager: &PoolManager, request: &CreatePoolRequest) -> Result<Self, Failed> {
        let usage = |message: String| Failed::new(FailureKind::Usage, message);
        let wanted = Some(&request.dir).filter(|dir| !dir.is_empty()).map(PathBuf::from);
        let (name, dir, register) = match (PoolSpec::parse(&request.pool)?, wanted) {
            (PoolSpec::Name(name), Some(dir)) => (name, dir, true),
            (PoolSpec::Name(name), None) => {
                let dir = manager.known.default_dir(&name);
                (name, dir, true)
            }
            (PoolSpec::Dir(dir), None) => {
                let name = dir.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
                check_name(&name)?;
                (name, dir, false)
            }
            (PoolSpec::Mapper(_), _) => {
                return Err(usage(format!(
                    "create pool {}: kernel pools are made with dmsetup",
                    request.pool
                ))
                .with_hint("a pool of thinbak's own: thinbak pool create NAME --data DEV --metadata DEV"));
            }
            (PoolSpec::Lvm(_), _) => {
                return Err(usage(format!(
                    "create pool {}: pools of LVM are made with lvcreate",
                    request.pool
                ))
                .with_hint("as in: lvcreate --type thin-pool -L 100G -n POOL VG"));
            }
            (PoolSpec::Dir(_), Some(_)) => {
                return Err(usage("the pool's directory is given twice".to_owned()));
            }
        };
        for path in [&request.dir, &request.data_device, &request.metadata_device] {
            if !path.is_empty() && !Path::new(path).is_absolute() {
                return Err(usage(format!("the path {path} must be absolute")));
            }
        }
        let devices = match (request.data_device.as_str(), request.metadata_device.as_str()) {
            ("", "") => None,
            ("", _) | (_, "") => {
                return Err(usage("a pool on devices needs both a data and a metadata device".to_owned()));
            }
            (data, metadata) => {
                for path in [data, metadata] {
                    if !Path::new(path).exists() {
                        let message = format!("create pool {}: there is no {path}", request.pool);
                        return Err(Failed::new(FailureKind::NotFound, message));
                    }
                }
                Some((PathBuf::from(data), PathBuf::from(metadata)))
            }
        };
        let block_bytes = Some(request.block_bytes).filter(|bytes| *bytes > 0).unwrap_or(DEFAULT_BLOCK_BYTES);
        let block_size = BlockSize::from_bytes(block_bytes).map_err(|error| {
            usage(format!("create pool {}: {error}", request.pool))
                .with_hint("a block size is a multiple of 64 KiB, at most 1 GiB")
        })?;
        let options = CreateOptions {
            name: name.clone(),
            data_bytes: request.size_bytes,
            block_size,
            metadata_bytes: Some(request.metadata_bytes).filter(|bytes| *bytes > 0),
            devices,
            table: settings::table(request.settings.unwrap_or_default(), block_size),
        };
        Ok(Self { name, dir, register, options })
    }
}

/// The name comes first: what a crash leaves then is a name without a pool, which the next attempt takes over.
fn register(manager: &PoolManager, plan: &Plan) -> Result<(), Failed> {
    manager.known.change(|pools| match pools.get(&plan.name) {
        Some(dir) if *dir != plan.dir || dir.join("pool.json").exists() => Err(Failed::new(
            FailureKind::Refused,
            format!("create pool {}: there is one of this name at {}", plan.name, dir.display()),
        )),
        _ => {
            pools.insert(plan.name.clone(), plan.dir.clone());
            Ok(())
        }
    })
}

fn unregister(manager: &PoolManager, name: &str) -> Result<(), Failed> {
    manager.known.change(|pools| {
        pools.remove(name);
        Ok(())
    })
}

pub(super) fn list(manager: &PoolManager) -> Result<Vec<PoolInfo>, Failed> {
    let known = manager.known.all()?;
    let listed = known.into_iter().map(|(name, dir)| {
        let opened = manager.open_dir(&name, &dir).map(|pool| info::embedded(&pool));
        match opened {
            Ok(info) => PoolInfo { name, ..info },
            Err(failed) => PoolInfo {
                name,
                kind: "dir".to_owned(),
                place: dir.display().to_string(),
                error: failed.message,
                ..PoolInfo::default()
            },
        }
    });
    let of_kernel = kernel::pools_of_host().into_iter().map(|name| {
        kernel::look(&name, manager.known.state_dir()).unwrap_or_else(|failed| PoolInfo {
            kind: "dm".to_owned(),
            place: name.clone(),
            name,
            error: failed.message,
            ..PoolInfo::default()
        })
    });
    let of_lvm = kernel::lvm_pools_of_host().into_iter().map(|place| {
        kernel::look_at_lvm(&place, manager.known.state_dir()).unwrap_or_else(|failed| PoolInfo {
            kind: "lvm".to_owned(),
            place: place.to_string(),
            name: place.to_string(),
            error: failed.message,
            ..PoolInfo::default()
        })
    });
    Ok(listed.chain(of_kernel).chain(of_lvm).map(|info| manager.with_warnings(info)).collect())
}

pub(super) fn status(manager: &PoolManager, spec: &str) -> Result<PoolInfo, Failed> {
    let info = match PoolSpec::parse(spec)? {
        PoolSpec::Mapper(name) => kernel::look(&name, manager.known.state_dir()),
        PoolSpec::Lvm(place) => kernel::look_at_lvm(&place, manager.known.state_dir()),
        PoolSpec::Dir(_) | PoolSpec::Name(_) => manager.open(spec)?.info(),
    };
    info.map(|info| manager.with_warnings(info))
}

/// Metadata first: a pool that is out of both gets room for the metadata of its new data blocks.
pub(super) fn resize(manager: &PoolManager, request: &ResizePoolRequest) -> Result<PoolInfo, Failed> {
    let attempt = || format!("resize pool {}", request.pool);
    if request.size_bytes == 0 && request.metadata_bytes == 0 {
        return Err(Failed::new(FailureKind::Usage, format!("{}: no size is given", attempt())));
    }
    let pool = manager.open_embedded(&request.pool, "resize")?;
    if request.metadata_bytes > 0 {
        pool.grow_metadata(request.metadata_bytes).map_err(while_doing(attempt))?;
    }
    if request.size_bytes > 0 {
        pool.grow(request.size_bytes).map_err(while_doing(attempt))?;
    }
    Ok(info::embedded(&pool))
}

/// Removes the pool and its name. A name whose pool is gone is only taken off the list.
pub(super) fn remove(manager: &PoolManager, spec: &str) -> Result<(), Failed> {
    let dir = manager.dir_of(spec, "remove")?;
    let removed = manager.remove(spec, &dir);
    let registered = matches!(PoolSpec::parse(spec)?, PoolSpec::Name(_));
    match removed {
        Err(failed) if !(registered && failed.kind == FailureKind::NotFound) => Err(failed),
        _ => manager.known.change(|pools| {
            pools.retain(|_, place| *place != dir);
            Ok(())
        }),
    }
}

/// Messages that change what the registry knows are refused by the pool itself.
pub(super) fn message(manager: &PoolManager, spec: &str, words: &[String]) -> Result<(), Failed> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let attempt = || format!("message `{}` to pool {spec}", words.join(" "));
    manager.open_embedded(spec, "send a message to")?.message(&words).map_err(while_doing(attempt))
}

/// Checks the metadata of a pool, or what a file or device holds.
pub(super) fn check(manager: &PoolManager, source: Option<Source>) -> Result<CheckPoolResponse, Failed> {
    match source {
        Some(Source::Pool(spec)) => check_pool(manager, &spec),
        Some(Source::MetadataPath(path)) => {
            let device = text::open_file(Path::new(&path))?;
            Ok(answer(check::check(Arc::new(device), None).map_err(of_check)?))
        }
        None => Err(Failed::new(FailureKind::Usage, "no pool or metadata is named")),
    }
}

/// A pool that is not open stays closed: opening it may write.
fn check_pool(manager: &PoolManager, spec: &str) -> Result<CheckPoolResponse, Failed> {
    let dir = manager.dir_of(spec, "check")?;
    if let Some(pool) = manager.opened(&dir) {
        return check_open(spec, &pool).map(answer);
    }
    let checked = EmbeddedPool::check(&dir).map_err(while_doing(|| format!("check pool {spec}")));
    let (report, wrong) = checked.map_err(hint_at_agent)?;
    let mut answer = answer(report);
    answer.damage.extend(wrong.map(|wrong| PoolDamage {
        invariant: "N".to_owned(),
        fatal: true,
        description: engine_failed(wrong).message,
    }));
    Ok(answer)
}

/// Checks the last commit. Its blocks stay as they are until the next one, so a report counts when none came in
/// between.
fn check_open(spec: &str, pool: &EmbeddedPool) -> Result<CheckReport, Failed> {
    let data_bytes = Some(pool.pool().data_device().size_bytes());
    for _ in 0..CHECK_ATTEMPTS {
        pool.flush().map_err(while_doing(|| format!("check pool {spec}")))?;
        let metadata = pool.pool().metadata_device();
        let before = superblock(metadata.as_ref(), spec)?;
        let report = check::check(Arc::clone(metadata), data_bytes).map_err(of_check)?;
        if superblock(metadata.as_ref(), spec)? == before {
            return Ok(report);
        }
    }
    Err(Failed::new(FailureKind::Busy, format!("check pool {spec}: it is being written all the time"))
        .with_hint("check it when no job is running"))
}

fn superblock(metadata: &dyn BlockDevice, spec: &str) -> Result<Vec<u8>, Failed> {
    let mut block = vec![0; METADATA_BLOCK_BYTES];
    metadata.read_at(0, &mut block).map_err(|error| {
        Failed::new(FailureKind::Failed, format!("check pool {spec}: read its superblock: {error}"))
    })?;
    Ok(block)
}

fn answer(report: CheckReport) -> CheckPoolResponse {
    let mut damage: Vec<PoolDamage> = report
        .damage
        .into_iter()
        .map(|damage| PoolDamage {
            invariant: damage.invariant.to_owned(),
            fatal: damage.fatal,
            description: damage.description,
        })
        .collect();
    for (count, fatal) in [(report.fatal_omitted, true), (report.minor_omitted, false)] {
        if count > 0 {
            damage.push(PoolDamage {
                invariant: "N".to_owned(),
                fatal,
                description: format!("{count} more are not listed"),
            });
        }
    }
    CheckPoolResponse {
        damage,
        devices: report.devices,
        mappings: report.mappings,
        metadata_blocks_checked: report.blocks,
    }
}
