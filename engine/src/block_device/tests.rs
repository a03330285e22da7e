use super::{Access, BlockDevice, Fate, FaultDevice, FaultLog, FileDevice, MemoryDevice, crash_image};

fn conforms(device: &dyn BlockDevice) {
    let size = device.size_bytes();
    assert_eq!(size, 1 << 20);
    let pattern: Vec<u8> = (0..10_000_u32).map(|at| (at % 251) as u8 + 1).collect();
    device.write_at(4_000, &pattern).unwrap();
    let mut back = vec![9; 10_002];
    device.read_at(3_999, &mut back).unwrap();
    assert_eq!((back[0], back[10_001]), (0, 0));
    assert_eq!(&back[1..10_001], &pattern[..]);
    assert!(device.write_at(size - 3, b"four").is_err());
    assert!(device.read_at(size - 3, &mut [0; 4]).is_err());
    assert!(device.read_at(u64::MAX, &mut [0; 4]).is_err());
    device.flush().unwrap();
    device.discard(8_192, 4_096).unwrap();
    device.read_at(8_191, &mut back[..4_098]).unwrap();
    assert_eq!(back[0], pattern[4_191]);
    assert!(back[1..4_097].iter().all(|&byte| byte == 0));
    assert_eq!(back[4_097], pattern[8_288]);
    device.resize(2 << 20).unwrap();
    device.write_at((2 << 20) - 4, b"last").unwrap();
}

#[test]
fn memory_device_conforms() {
    conforms(&MemoryDevice::new(1 << 20));
}

#[test]
fn file_device_conforms() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("device");
    conforms(&FileDevice::create(&path, 1 << 20).unwrap());
    let reopened = FileDevice::open(&path, Access::ReadOnly).unwrap();
    assert_eq!(reopened.size_bytes(), 2 << 20);
    assert!(reopened.write_at(0, b"x").is_err());
    assert!(FileDevice::create(&path, 1).is_err());
    assert!(FileDevice::open(dir.path(), Access::ReadOnly).is_err());
}

#[test]
fn shrunk_memory_forgets_what_was_cut_off() {
    let device = MemoryDevice::from_bytes(&[7; 10_000]);
    device.resize(5_000).unwrap();
    device.resize(10_000).unwrap();
    let mut back = [1; 10_000];
    device.read_at(0, &mut back).unwrap();
    assert!(back[..5_000].iter().all(|&byte| byte == 7));
    assert!(back[5_000..].iter().all(|&byte| byte == 0));
    assert!(device.is_hole(8_192, 4_096));
}

#[test]
fn a_crash_keeps_what_was_flushed_and_what_fate_spares() {
    let log = FaultLog::new();
    let before = MemoryDevice::new(1 << 20);
    let device = FaultDevice::new(before.duplicate(), 1, log.clone());
    device.write_at(0, &[1; 1024]).unwrap();
    device.flush().unwrap();
    device.write_at(0, &[2; 1024]).unwrap();
    device.write_at(4096, &[3; 1024]).unwrap();
    log.fail(0, 1);
    assert!(device.write_at(0, &[4; 1]).is_err());
    assert!(device.flush().is_ok());
    let byte = |image: &MemoryDevice, at| {
        let mut byte = [0];
        image.read_at(at, &mut byte).unwrap();
        byte[0]
    };
    let events = &log.events()[..4];
    let lost = crash_image(&before, events, 1, |_| Fate::Lost).unwrap();
    assert_eq!((byte(&lost, 0), byte(&lost, 4096)), (1, 0));
    let torn = crash_image(&before, events, 1, |_| Fate::Torn(512)).unwrap();
    assert_eq!((byte(&torn, 511), byte(&torn, 512), byte(&torn, 4096), byte(&torn, 4608)), (2, 1, 3, 0));
    let whole = crash_image(&before, &log.events(), 1, |_| Fate::Lost).unwrap();
    assert_eq!((byte(&whole, 0), byte(&whole, 4096)), (2, 3));
    let other = crash_image(&before, &log.events(), 0, |_| Fate::Kept).unwrap();
    assert_eq!(byte(&other, 0), 0);
}
