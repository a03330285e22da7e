//! Of sys/sem.h, for the semaphores by which udev says that it is done.

pub const SEM_UNDO: i32 = 4096;
pub const GETPID: i32 = 11;
pub const GETVAL: i32 = 12;
pub const GETALL: i32 = 13;
pub const GETNCNT: i32 = 14;
pub const GETZCNT: i32 = 15;
pub const SETVAL: i32 = 16;
pub const SETALL: i32 = 17;
pub const SEM_STAT: i32 = 18;
pub const SEM_INFO: i32 = 19;
pub const SEM_STAT_ANY: i32 = 20;
pub type __uid_t = ::std::os::raw::c_uint;
pub type __gid_t = ::std::os::raw::c_uint;
pub type __mode_t = ::std::os::raw::c_uint;
pub type __time_t = ::std::os::raw::c_long;
pub type __key_t = ::std::os::raw::c_int;
pub type __syscall_ulong_t = ::std::os::raw::c_ulong;
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct ipc_perm {
    pub __key: __key_t,
    pub uid: __uid_t,
    pub gid: __gid_t,
    pub cuid: __uid_t,
    pub cgid: __gid_t,
    pub mode: __mode_t,
    pub __seq: ::std::os::raw::c_ushort,
    pub __pad2: ::std::os::raw::c_ushort,
    pub __glibc_reserved1: __syscall_ulong_t,
    pub __glibc_reserved2: __syscall_ulong_t,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of ipc_perm"][::std::mem::size_of::<ipc_perm>() - 48usize];
    ["Alignment of ipc_perm"][::std::mem::align_of::<ipc_perm>() - 8usize];
    ["Offset of field: ipc_perm::__key"][::std::mem::offset_of!(ipc_perm, __key) - 0usize];
    ["Offset of field: ipc_perm::uid"][::std::mem::offset_of!(ipc_perm, uid) - 4usize];
    ["Offset of field: ipc_perm::gid"][::std::mem::offset_of!(ipc_perm, gid) - 8usize];
    ["Offset of field: ipc_perm::cuid"][::std::mem::offset_of!(ipc_perm, cuid) - 12usize];
    ["Offset of field: ipc_perm::cgid"][::std::mem::offset_of!(ipc_perm, cgid) - 16usize];
    ["Offset of field: ipc_perm::mode"][::std::mem::offset_of!(ipc_perm, mode) - 20usize];
    ["Offset of field: ipc_perm::__seq"][::std::mem::offset_of!(ipc_perm, __seq) - 24usize];
    ["Offset of field: ipc_perm::__pad2"][::std::mem::offset_of!(ipc_perm, __pad2) - 26usize];
    ["Offset of field: ipc_perm::__glibc_reserved1"]
        [::std::mem::offset_of!(ipc_perm, __glibc_reserved1) - 32usize];
    ["Offset of field: ipc_perm::__glibc_reserved2"]
        [::std::mem::offset_of!(ipc_perm, __glibc_reserved2) - 40usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct semid_ds {
    pub sem_perm: ipc_perm,
    pub sem_otime: __time_t,
    pub __sem_otime_high: __syscall_ulong_t,
    pub sem_ctime: __time_t,
    pub __sem_ctime_high: __syscall_ulong_t,
    pub sem_nsems: __syscall_ulong_t,
    pub __glibc_reserved3: __syscall_ulong_t,
    pub __glibc_reserved4: __syscall_ulong_t,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of semid_ds"][::std::mem::size_of::<semid_ds>() - 104usize];
    ["Alignment of semid_ds"][::std::mem::align_of::<semid_ds>() - 8usize];
    ["Offset of field: semid_ds::sem_perm"][::std::mem::offset_of!(semid_ds, sem_perm) - 0usize];
    ["Offset of field: semid_ds::sem_otime"][::std::mem::offset_of!(semid_ds, sem_otime) - 48usize];
    ["Offset of field: semid_ds::__sem_otime_high"]
        [::std::mem::offset_of!(semid_ds, __sem_otime_high) - 56usize];
    ["Offset of field: semid_ds::sem_ctime"][::std::mem::offset_of!(semid_ds, sem_ctime) - 64usize];
    ["Offset of field: semid_ds::__sem_ctime_high"]
        [::std::mem::offset_of!(semid_ds, __sem_ctime_high) - 72usize];
    ["Offset of field: semid_ds::sem_nsems"][::std::mem::offset_of!(semid_ds, sem_nsems) - 80usize];
    ["Offset of field: semid_ds::__glibc_reserved3"]
        [::std::mem::offset_of!(semid_ds, __glibc_reserved3) - 88usize];
    ["Offset of field: semid_ds::__glibc_reserved4"]
        [::std::mem::offset_of!(semid_ds, __glibc_reserved4) - 96usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct seminfo {
    pub semmap: ::std::os::raw::c_int,
    pub semmni: ::std::os::raw::c_int,
    pub semmns: ::std::os::raw::c_int,
    pub semmnu: ::std::os::raw::c_int,
    pub semmsl: ::std::os::raw::c_int,
    pub semopm: ::std::os::raw::c_int,
    pub semume: ::std::os::raw::c_int,
    pub semusz: ::std::os::raw::c_int,
    pub semvmx: ::std::os::raw::c_int,
    pub semaem: ::std::os::raw::c_int,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of seminfo"][::std::mem::size_of::<seminfo>() - 40usize];
    ["Alignment of seminfo"][::std::mem::align_of::<seminfo>() - 4usize];
    ["Offset of field: seminfo::semmap"][::std::mem::offset_of!(seminfo, semmap) - 0usize];
    ["Offset of field: seminfo::semmni"][::std::mem::offset_of!(seminfo, semmni) - 4usize];
    ["Offset of field: seminfo::semmns"][::std::mem::offset_of!(seminfo, semmns) - 8usize];
    ["Offset of field: seminfo::semmnu"][::std::mem::offset_of!(seminfo, semmnu) - 12usize];
    ["Offset of field: seminfo::semmsl"][::std::mem::offset_of!(seminfo, semmsl) - 16usize];
    ["Offset of field: seminfo::semopm"][::std::mem::offset_of!(seminfo, semopm) - 20usize];
    ["Offset of field: seminfo::semume"][::std::mem::offset_of!(seminfo, semume) - 24usize];
    ["Offset of field: seminfo::semusz"][::std::mem::offset_of!(seminfo, semusz) - 28usize];
    ["Offset of field: seminfo::semvmx"][::std::mem::offset_of!(seminfo, semvmx) - 32usize];
    ["Offset of field: seminfo::semaem"][::std::mem::offset_of!(seminfo, semaem) - 36usize];
};
#[repr(C)]
#[derive(Copy, Clone)]
pub union semun {
    pub val: ::std::os::raw::c_int,
    pub buf: *mut semid_ds,
    pub array: *mut ::std::os::raw::c_ushort,
    pub __buf: *mut seminfo,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of semun"][::std::mem::size_of::<semun>() - 8usize];
    ["Alignment of semun"][::std::mem::align_of::<semun>() - 8usize];
    ["Offset of field: semun::val"][::std::mem::offset_of!(semun, val) - 0usize];
    ["Offset of field: semun::buf"][::std::mem::offset_of!(semun, buf) - 0usize];
    ["Offset of field: semun::array"][::std::mem::offset_of!(semun, array) - 0usize];
    ["Offset of field: semun::__buf"][::std::mem::offset_of!(semun, __buf) - 0usize];
};
impl Default for semun {
    fn default() -> Self {
        let mut s = ::std::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::std::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
}
