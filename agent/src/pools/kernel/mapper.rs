//! The device-mapper of this host, by ioctl: nothing is started for a call, so that calls can be made while a device is
//! suspended, and a metadata snapshot is held no longer than it is used.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::Instant,
};

use devicemapper::{DM, DevId, Device, DmFlags, DmName, DmOptions, DmUuid, errors::Error as CoreError};
use rustix::io::Errno;
use thinbak_proto::{Failed, FailureKind};

const CONTROL: &str = "/dev/mapper/control";

/// What the device-mapper answered to a call.
#[derive(Debug, thiserror::Error)]
#[error("{attempt}: {source}")]
pub(super) struct MapperError {
    attempt: String,
    source: io::Error,
}

impl MapperError {
    fn new(attempt: impl Into<String>, source: io::Error) -> Self {
        Self { attempt: attempt.into(), source }
    }

    /// Whether it is this error of the kernel.
    pub(super) fn is(&self, errno: Errno) -> bool {
        Errno::from_io_error(&self.source) == Some(errno)
    }
}

impl From<MapperError> for Failed {
    fn from(error: MapperError) -> Self {
        let kind = match Errno::from_io_error(&error.source) {
            Some(Errno::ACCESS | Errno::PERM) => FailureKind::Denied,
            Some(Errno::BUSY) => FailureKind::Busy,
            _ => FailureKind::Failed,
        };
        Self::new(kind, error.to_string())
    }
}

/// A target of a device: where it begins and how long it is in sectors, its type, and its table or status.
pub(super) type Target = (u64, u64, String, String);

/// What is known of a device without its table.
#[derive(Debug, Clone)]
pub(super) struct Info {
    pub(super) number: Device,
    pub(super) uuid: String,
    pub(super) suspended: bool,
    /// Whether a table is loaded that the next resume puts in force.
    pub(super) has_inactive_table: bool,
    pub(super) event_nr: u32,
    /// By mounts, other devices and processes.
    pub(super) open_count: i32,
}

/// The way to the device-mapper.
pub(super) struct Mapper {
    dm: DM,
}

impl Mapper {
    /// Only root gets through, on hosts that have a device-mapper.
    pub(super) fn open() -> Result<Self, Failed> {
        if let Err(error) = File::open(CONTROL) {
            let message = format!("open {CONTROL}: {error}");
            return Err(match error.kind() {
                io::ErrorKind::NotFound => Failed::new(FailureKind::Failed, message)
                    .with_hint("this host has no device-mapper: modprobe dm-mod loads it where there is one"),
                io::ErrorKind::PermissionDenied => denied(message),
                _ => Failed::new(FailureKind::Failed, message),
            });
        }
        let dm = DM::new().map_err(|error| Failed::new(FailureKind::Failed, error.to_string()))?;
        let version = dm.version().map_err(|error| refused("ask for the device-mapper's version", error));
        match version {
            Ok(_) => Ok(Self { dm }),
            Err(error) if error.is(Errno::ACCESS) || error.is(Errno::PERM) => Err(denied(error.to_string())),
            Err(error) => Err(error.into()),
        }
    }

    /// All devices by name.
    pub(super) fn devices(&self) -> Result<Vec<(String, Device)>, MapperError> {
        let listed = self.dm.list_devices().map_err(|error| refused("list the devices", error))?;
        Ok(listed.into_iter().map(|(name, number, _)| (name.to_string(), number)).collect())
    }

    /// A device; `None` if there is none of this name.
    pub(super) fn info(&self, name: &str) -> Result<Option<Info>, MapperError> {
        let attempt = || format!("look at device {name}");
        let info = match self.dm.device_info(&DevId::Name(dm_name(name)?)) {
            Ok(info) => info,
            Err(error) => {
                let error = refused(attempt(), error);
                return if error.is(Errno::NXIO) { Ok(None) } else { Err(error) };
            }
        };
        Ok(Some(Info {
            number: info.device(),
            uuid: info.uuid().map(ToString::to_string).unwrap_or_default(),
            suspended: info.flags().contains(DmFlags::DM_SUSPEND),
            has_inactive_table: info.flags().contains(DmFlags::DM_INACTIVE_PRESENT),
            event_nr: info.event_nr(),
            open_count: info.open_count(),
        }))
    }

    /// The live table of a device.
    pub(super) fn table(&self, name: &str) -> Result<Vec<Target>, MapperError> {
        self.query(name, DmFlags::DM_STATUS_TABLE)
    }

    /// The status of a device, without a commit.
    pub(super) fn status(&self, name: &str) -> Result<Vec<Target>, MapperError> {
        self.query(name, DmFlags::DM_NOFLUSH)
    }

    /// Makes a pool commit what is in memory of its metadata: it does before it tells its state.
    pub(super) fn commit(&self, name: &str) -> Result<(), MapperError> {
        self.query(name, DmFlags::empty()).map(|_| ())
    }

    fn query(&self, name: &str, flags: DmFlags) -> Result<Vec<Target>, MapperError> {
        let options = DmOptions::default().set_flags(flags);
        let (_, targets) = self
            .dm
            .table_status(&DevId::Name(dm_name(name)?), options)
            .map_err(|error| refused(format!("ask for the state of device {name}"), error))?;
        Ok(targets)
    }

    /// Sends a message to the only target of a device.
    pub(super) fn message(&self, name: &str, message: &str) -> Result<(), MapperError> {
        let since = Instant::now();
        let sent = self.dm.target_msg(&DevId::Name(dm_name(name)?), None, message);
        let took_us = since.elapsed().as_micros();
        tracing::debug!(device = %name, sent = %message, took_us, "a message");
        sent.map(|_| ()).map_err(|error| refused(format!("message `{message}` to {name}"), error))
    }

    /// Suspends a device: a file system on it is frozen, what is under way is written, and what comes waits.
    pub(super) fn suspend(&self, name: &str) -> Result<(), MapperError> {
        let options = DmOptions::default().set_flags(DmFlags::DM_SUSPEND);
        let done = self.dm.device_suspend(&DevId::Name(dm_name(name)?), options);
        done.map(|_| ()).map_err(|error| refused(format!("suspend {name}"), error))
    }

    /// Resumes a device, with a new table if one was loaded, and then waits for udev, however long that takes.
    pub(super) fn resume(&self, name: &str) -> Result<(), MapperError> {
        let done = self.dm.device_suspend(&DevId::Name(dm_name(name)?), DmOptions::default());
        done.map(|_| ()).map_err(|error| refused(format!("resume {name}"), error))
    }

    /// Loads a table of one target beside that in force; the next resume puts it in force.
    pub(super) fn load(&self, name: &str, target: Target) -> Result<(), MapperError> {
        let id = DevId::Name(dm_name(name)?);
        let attempt = || format!("load a table for {name}");
        let info = self.dm.device_info(&id).map_err(|error| refused(attempt(), error))?;
        let read_only = info.flags() & DmFlags::DM_READONLY;
        let loaded = self.dm.table_load(&id, &[target], DmOptions::default().set_flags(read_only));
        loaded.map(|_| ()).map_err(|error| refused(attempt(), error))
    }

    /// Gives up a table that was loaded and is not in force.
    pub(super) fn clear(&self, name: &str) -> Result<(), MapperError> {
        let cleared = self.dm.table_clear(&DevId::Name(dm_name(name)?));
        cleared.map(|_| ()).map_err(|error| refused(format!("clear the new table of {name}"), error))
    }

    /// Makes a device of one target that only we use, and returns the path to it. On failure there is none.
    pub(super) fn activate(&self, name: &str, uuid: &str, target: Target) -> Result<PathBuf, MapperError> {
        let attempt = || format!("make device {name}");
        let (id, options) = (DevId::Name(dm_name(name)?), DmOptions::private());
        let uuid = DmUuid::new(uuid).map_err(|error| refused(attempt(), error))?;
        let created = self.dm.device_create(dm_name(name)?, Some(uuid), options);
        let number = created.map_err(|error| refused(attempt(), error))?.device();
        let loaded = self.dm.table_load(&id, &[target], DmOptions::default());
        let resumed = loaded.and_then(|_| self.dm.device_suspend(&id, options));
        let path = resumed
            .map_err(|error| refused(attempt(), error))
            .and_then(|_| node(number).map_err(|error| MapperError::new(attempt(), error)));
        path.inspect_err(|_| {
            if let Err(error) = self.remove(name) {
                tracing::warn!(device = name, %error, "a device that could not be made is left");
            }
        })
    }

    /// Removes a device, waiting a second for whoever looks at it.
    pub(super) fn remove(&self, name: &str) -> Result<(), MapperError> {
        let removed = self.dm.device_remove(&DevId::Name(dm_name(name)?), DmOptions::private());
        removed.map(|_| ()).map_err(|error| refused(format!("remove device {name}"), error))
    }
}

/// The node of a block device in /dev, by the name that the kernel gives it.
pub(super) fn node(number: Device) -> io::Result<PathBuf> {
    let events = fs::read_to_string(format!("/sys/dev/block/{number}/uevent"))?;
    let name = events.lines().find_map(|line| line.strip_prefix("DEVNAME="));
    let name = name.ok_or_else(|| io::Error::other(format!("block device {number} has no name")))?;
    Ok(Path::new("/dev").join(name))
}

fn denied(message: String) -> Failed {
    Failed::new(FailureKind::Denied, message).with_hint("device-mapper pools are for root")
}

fn dm_name(name: &str) -> Result<&DmName, MapperError> {
    DmName::new(name).map_err(|error| refused(format!("name a device `{name}`"), error))
}

fn refused(attempt: impl Into<String>, error: devicemapper::DmError) -> MapperError {
    let source = match error {
        devicemapper::DmError::Core(CoreError::Ioctl(_, _, _, errno)) => io::Error::from(*errno),
        other => io::Error::other(other.to_string()),
    };
    MapperError::new(attempt, source)
}
