use std::io;

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use super::{
    Access, BlockDevice, CrashReplay, Fate, Fault, FaultDevice, FaultLog, FileDevice, IoEvent, IoKind,
    MemoryDevice, Remains, crash_image,
};

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

fn byte(image: &MemoryDevice, at: u64) -> u8 {
    let mut byte = [0];
    image.read_at(at, &mut byte).unwrap();
    byte[0]
}

fn write(offset: u64, value: u8, length: usize) -> IoEvent {
    IoEvent::Write { device: 0, offset, bytes: vec![value; length].into() }
}

/// The first bytes of sectors 0, 1 and 2 after a crash.
fn sectors(replay: &CrashReplay<'_>, keep: impl FnMut(usize, u64, &[usize]) -> usize) -> [u8; 3] {
    let image = replay.crash(keep).unwrap().remove(0);
    [0, 512, 1024].map(|at| byte(&image, at))
}

#[test]
fn each_sector_keeps_any_of_its_states_since_the_last_flush() {
    let events = [
        write(0, 1, 1024),
        IoEvent::Flush { device: 0, covers: 1 },
        write(0, 2, 1024),
        write(512, 3, 1024),
        IoEvent::Discard { device: 0, offset: 0, len: 512 },
    ];
    let mut replay = CrashReplay::new(&[MemoryDevice::new(4096)], &events);
    replay.advance().unwrap();
    assert!(replay.is_exposed(0));
    replay.advance().unwrap();
    assert!(!replay.is_exposed(0));
    while replay.advance().unwrap() {}
    assert_eq!(replay.position(), 5);
    assert_eq!(sectors(&replay, |_, _, _| 0), [1, 1, 0]);
    assert_eq!(sectors(&replay, |_, _, events| events.len()), [0, 3, 3]);
    // The second write is lost but for its second sector, and the first one came only to its first.
    assert_eq!(sectors(&replay, |_, sector, _| [1, 0, 1][sector as usize]), [2, 1, 3]);
    let mut asked = Vec::new();
    replay
        .crash(|_, sector, events| {
            asked.push((sector, events.to_vec()));
            0
        })
        .unwrap();
    assert_eq!(asked, [(0, vec![2, 4]), (1, vec![2, 3]), (2, vec![3])]);
}

#[test]
fn bytes_that_share_a_sector_stay_together() {
    let events = [write(100, 1, 10), write(0, 2, 10), write(200, 3, 10)];
    let mut replay = CrashReplay::new(&[MemoryDevice::new(4096)], &events);
    while replay.advance().unwrap() {}
    let image = replay.crash(|_, _, _| 2).unwrap().remove(0);
    assert_eq!([0, 100, 200].map(|at| byte(&image, at)), [2, 1, 0]);
}

#[test]
fn a_flush_covers_only_what_was_done_before_it_began() {
    // A second thread wrote while the first one flushed.
    let events = [write(0, 1, 512), write(512, 2, 512), IoEvent::Flush { device: 0, covers: 1 }];
    let mut replay = CrashReplay::new(&[MemoryDevice::new(4096)], &events);
    while replay.advance().unwrap() {}
    assert_eq!(sectors(&replay, |_, _, _| 0), [1, 0, 0]);
    let image = crash_image(&MemoryDevice::new(4096), &events, 0, |_| Fate::Lost).unwrap();
    assert_eq!([0, 512].map(|at| byte(&image, at)), [1, 0]);
}

#[test]
fn what_a_failed_flush_left_open_no_later_flush_makes_durable() {
    let events = [
        write(0, 1, 1024),
        IoEvent::FailedFlush { device: 0, covers: 1 },
        write(512, 2, 512),
        write(1024, 3, 512),
        IoEvent::Flush { device: 0, covers: 4 },
    ];
    let mut replay = CrashReplay::new(&[MemoryDevice::new(4096)], &events);
    while replay.advance().unwrap() {}
    assert_eq!(sectors(&replay, |_, _, _| 0), [0, 2, 3]);
    assert_eq!(sectors(&replay, |_, _, events| events.len()), [1, 2, 3]);
    let image = crash_image(&MemoryDevice::new(4096), &events, 0, |_| Fate::Lost).unwrap();
    assert_eq!([0, 512, 1024].map(|at| byte(&image, at)), [0, 2, 3]);
}

#[test]
fn a_size_is_lost_without_a_flush() {
    let events = [IoEvent::Resize { device: 0, size: 8192 }, write(4096, 1, 512)];
    let mut replay = CrashReplay::new(&[MemoryDevice::new(4096)], &events);
    while replay.advance().unwrap() {}
    assert_eq!(replay.crash(|_, _, _| 0).unwrap()[0].size_bytes(), 4096);
    let kept = replay.crash(|_, _, events| events.len()).unwrap().remove(0);
    assert_eq!((kept.size_bytes(), byte(&kept, 4096)), (8192, 1));
}

#[test]
fn each_kind_of_operation_fails_by_itself() {
    let log = FaultLog::new();
    let [first, second] = [0, 1].map(|number| FaultDevice::new(MemoryDevice::new(4096), number, log.clone()));
    let mut buf = [0; 4];
    log.inject(Fault {
        device: Some(1),
        error: io::ErrorKind::StorageFull,
        ..Fault::new(&[IoKind::Read], 1, 2)
    });
    assert!(second.read_at(0, &mut buf).is_ok() && first.read_at(0, &mut buf).is_ok());
    let error = second.read_at(0, &mut buf).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    assert!(second.write_at(0, &buf).is_ok() && second.flush().is_ok());
    log.pause(true);
    assert!(second.read_at(0, &mut buf).is_ok());
    log.pause(false);
    assert!(second.read_at(0, &mut buf).is_err());
    assert!(second.read_at(0, &mut buf).is_ok());
    assert_eq!(log.strikes(), 2);
    log.inject(Fault::new(&[IoKind::Flush, IoKind::Discard], 0, u64::MAX));
    assert!(first.flush().is_err() && second.discard(0, 512).is_err() && first.resize(4096).is_ok());
    log.heal();
    assert!(first.flush().is_ok());
}

#[test]
fn a_failing_write_leaves_what_the_plan_says() {
    for (remains, expected) in
        [(Remains::Nothing, [0, 0, 0]), (Remains::Half, [7, 7, 0]), (Remains::Everything, [7, 7, 7])]
    {
        let log = FaultLog::new();
        let device = FaultDevice::new(MemoryDevice::new(4096), 0, log.clone());
        log.inject(Fault { remains, ..Fault::new(&[IoKind::Write], 0, 1) });
        assert!(device.write_at(0, &[7; 1536]).is_err());
        assert_eq!([0, 512, 1024].map(|at| byte(device.inner(), at)), expected);
        assert_eq!(log.len(), usize::from(remains != Remains::Nothing));
    }
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

/// Writes of all sizes, around the page cache and through it, and reads leave what a vector would hold.
fn holds_what_a_vector_would(dir: &std::path::Path, seed: u64) {
    const SIZE: usize = 4 << 20;
    let mut random = StdRng::seed_from_u64(seed);
    let device = FileDevice::create(&dir.join("data"), SIZE as u64).unwrap();
    let mut expected = vec![0_u8; SIZE];
    let mut aligned = super::AlignedBuffer::default();
    for _ in 0..200 {
        let begin = random.random_range(0..SIZE);
        let begin = if random.random() { begin - begin % 4096 } else { begin };
        let longest = [4096, 1 << 20][random.random_range(0..2)].min(SIZE - begin);
        let len = random.random_range(0..=longest);
        let len = if random.random() { len - len % 4096 } else { len };
        let bytes = aligned.bytes(len);
        bytes.fill(random.random());
        device.write_at(begin as u64, bytes).unwrap();
        expected[begin..begin + len].copy_from_slice(bytes);
        let begin = random.random_range(0..SIZE);
        let mut back = vec![1; random.random_range(0..=(SIZE - begin).min(1 << 20))];
        device.read_at(begin as u64, &mut back).unwrap();
        assert!(back == expected[begin..begin + back.len()], "other bytes at {begin}");
    }
    device.flush().unwrap();
    assert!(std::fs::read(dir.join("data")).unwrap() == expected);
}

#[test]
fn writes_around_the_page_cache_and_through_it_are_one_order_of_writes() {
    let seed = std::env::var("THINBAK_SEED").ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or_else(rand::random);
    println!("THINBAK_SEED={seed}");
    // The build's directory is on a disk; the other ones often are in memory.
    let temporary = std::env::temp_dir();
    for parent in [std::path::Path::new(env!("CARGO_MANIFEST_DIR")), &temporary, "/dev/shm".as_ref()] {
        if parent.is_dir() {
            holds_what_a_vector_would(tempfile::tempdir_in(parent).unwrap().path(), seed);
        }
    }
}
