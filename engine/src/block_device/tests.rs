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

/// Reads of every kind of alignment, of a file whose end is inside a sector.
fn reads_around_the_page_cache(dir: &std::path::Path) {
    let path = dir.join("metadata");
    let content: Vec<u8> = (0..3 * 4096 + 1001_u32).map(|at| (at % 251) as u8).collect();
    std::fs::write(&path, &content).unwrap();
    let device = FileDevice::open_direct(&path).unwrap();
    assert_eq!(device.size_bytes(), content.len() as u64);
    let mut aligned = super::AlignedBuffer::default();
    for (offset, len) in
        [(0, 4096), (4096, 8192), (0, 1), (1, 9), (4090, 12), (100, 12_000), (8192, 5097), (13_288, 1)]
    {
        let expected = &content[offset..offset + len];
        let mut buffer = vec![0; len + 1];
        device.read_at(offset as u64, &mut buffer[1..]).unwrap();
        assert!(&buffer[1..] == expected, "{len} bytes at {offset}");
        let bytes = aligned.bytes(len);
        device.read_at(offset as u64, bytes).unwrap();
        assert!(bytes == expected, "{len} bytes at {offset}, aligned");
    }
    assert!(device.read_at(content.len() as u64 - 3, &mut [0; 4]).is_err());
    assert!(device.write_at(0, &[0; 4096]).is_err());
    // What another descriptor wrote through the page cache is seen at once.
    let writer = FileDevice::open(&path, Access::ReadWrite).unwrap();
    writer.write_at(4_000, &[7; 200]).unwrap();
    let mut back = [0; 200];
    device.read_at(4_000, &mut back).unwrap();
    assert_eq!(back, [7; 200]);
}

#[test]
fn reading_around_the_page_cache_is_reading() {
    reads_around_the_page_cache(tempfile::tempdir().unwrap().path());
    let empty = tempfile::NamedTempFile::new().unwrap();
    assert_eq!(FileDevice::open_direct(empty.path()).unwrap().size_bytes(), 0);
}

#[test]
fn where_a_file_system_cannot_read_around_the_page_cache_it_reads_through_it() {
    // sysfs refuses, a tmpfs refuses before Linux 6.6.
    let notes = std::path::Path::new("/sys/kernel/notes");
    if notes.exists() {
        let expected = std::fs::read(notes).unwrap();
        let device = FileDevice::open_direct(notes).unwrap();
        let mut found = vec![0; expected.len()];
        device.read_at(0, &mut found).unwrap();
        assert!(found == expected && !found.is_empty());
    }
    let shared_memory = std::path::Path::new("/dev/shm");
    if shared_memory.is_dir() {
        reads_around_the_page_cache(tempfile::tempdir_in(shared_memory).unwrap().path());
    }
}
