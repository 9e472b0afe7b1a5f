//! Which file this process runs, as the kernel sees it: what `/proc/PID/exe` leads to.
//!
//! It is the file that was given to execve(2), and to change that one runs another program, or the same once more. For a
//! program of this size that takes a fourth of a container's start. The kernel has a way without: once no memory is
//! mapped from the old file, PR_SET_MM_MAP of prctl(2) names another. So the segments of the program are mapped again
//! from another handle of the same file, each in the place of the old ones, where they are read and run meanwhile.

use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::ptr::null_mut;

use nix::errno::Errno;
use nix::libc::{self, Elf64_Phdr as Header, c_int, c_void};

/// A part of this program in memory: whole pages, all of which come from its file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Segment {
    memory: Range<usize>,
    /// Where it begins in the file.
    offset: i64,
    protection: c_int,
    /// Whether it may differ from the file: variables, and constants that the loader has filled in with addresses.
    is_own: bool,
}

/// Makes `program`, another handle of the file that this process runs, the one that it runs.
///
/// # Errors
/// ENOEXEC where it is another file. Where the kernel refuses: EPERM without CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN, EINVAL where it is built without
/// CONFIG_CHECKPOINT_RESTORE. The process goes on as before.
pub(crate) fn run_from(program: &File) -> Result<(), Errno> {
    super::assert_single_threaded();
    let segments = segments()?;
    if !is_file_of(&segments, program)? {
        return Err(Errno::ENOEXEC);
    }
    for segment in segments {
        // SAFETY: the segment is mapped from the file that this is a handle of, and this process has one thread.
        unsafe { if segment.is_own { copy(&segment)? } else { map_again(&segment, program)? } }
    }
    let mut layout = Layout::of_this_process()?;
    layout.program = program.as_raw_fd().cast_unsigned();
    // SAFETY: the layout is as long as is said and outlives the call. It is what the kernel has told, and nothing that
    // could change it comes between.
    let result = unsafe {
        layout.heap_end = libc::sbrk(0) as u64;
        libc::prctl(libc::PR_SET_MM, libc::PR_SET_MM_MAP, &raw const layout, size_of::<Layout>(), 0_usize)
    };
    Errno::result(result).map(drop)
}

/// Whether the segments are those of this file, by its first page, which has the headers and the identity of the build: a loader
/// that was started by hand is what the kernel runs, and this program is not.
fn is_file_of(segments: &[Segment], program: &File) -> Result<bool, Errno> {
    let first = segments.iter().find(|segment| segment.offset == 0 && !segment.is_own).ok_or(Errno::ENOEXEC)?;
    let mut bytes = vec![0; first.memory.len().min(4096)];
    program.read_exact_at(&mut bytes, 0).map_err(|error| crate::failure::errno_of(&error))?;
    let memory = std::ptr::with_exposed_provenance::<u8>(first.memory.start);
    // SAFETY: the segment is mapped, and is never written.
    Ok(unsafe { std::slice::from_raw_parts(memory, bytes.len()) } == bytes)
}

/// What the kernel keeps of a process's memory beside its mappings: `struct prctl_mm_map` of linux/prctl.h.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Layout {
    code: [u64; 2],
    data: [u64; 2],
    heap: u64,
    heap_end: u64,
    stack: u64,
    arguments: [u64; 2],
    environment: [u64; 2],
    /// Not changed where it has no length.
    auxiliary: u64,
    auxiliary_length: u32,
    program: u32,
}

impl Layout {
    /// All but the end of the heap, and the program: see proc_pid_stat(5).
    fn of_this_process() -> Result<Layout, Errno> {
        let stat = std::fs::read_to_string("/proc/self/stat").map_err(|error| crate::failure::errno_of(&error))?;
        Layout::parse(&stat).ok_or(Errno::EINVAL)
    }

    fn parse(stat: &str) -> Option<Layout> {
        // The name of the program may hold anything; the field behind it is the third.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse().ok();
        Some(Layout {
            code: [field(26)?, field(27)?],
            data: [field(45)?, field(46)?],
            heap: field(47)?,
            heap_end: 0,
            stack: field(28)?,
            arguments: [field(48)?, field(49)?],
            environment: [field(50)?, field(51)?],
            auxiliary: 0,
            auxiliary_length: 0,
            program: u32::MAX,
        })
    }
}

/// Puts the same bytes of the same file in its place.
///
/// # Safety
/// The segment must not differ from the file.
unsafe fn map_again(segment: &Segment, program: &File) -> Result<(), Errno> {
    let (start, length) = (segment.memory.start as *mut c_void, segment.memory.len());
    let flags = libc::MAP_PRIVATE | libc::MAP_FIXED;
    // SAFETY: what is read and run here is the same before and after the call, and the kernel exchanges it at once.
    let mapped = unsafe { libc::mmap(start, length, segment.protection, flags, program.as_raw_fd(), segment.offset) };
    if mapped == libc::MAP_FAILED { Err(Errno::last()) } else { Ok(()) }
}

/// Puts memory with the same bytes, but of no file, in its place.
///
/// # Safety
/// No other thread may write to the segment meanwhile.
unsafe fn copy(segment: &Segment) -> Result<(), Errno> {
    let (start, length) = (segment.memory.start as *mut c_void, segment.memory.len());
    // All of it is written at once, so the kernel need not be asked page by page.
    let private = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE;
    let writable = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: new memory is overwritten, to its end. Between the copy and its move into place nothing of this program's
    // variables is written: the calls write to no memory but errno, which belongs to the thread.
    unsafe {
        let new = libc::mmap(null_mut(), length, writable, private, -1, 0);
        if new == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        new.cast::<u8>().copy_from_nonoverlapping(start.cast::<u8>(), length);
        Errno::result(libc::mprotect(new, length, segment.protection))?;
        let moved = libc::mremap(new, length, length, libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED, start);
        if moved == libc::MAP_FAILED { Err(Errno::last()) } else { Ok(()) }
    }
}

/// The parts of this program; ENOEXEC where it is not built as programs usually are.
fn segments() -> Result<Vec<Segment>, Errno> {
    let headers = headers()?;
    let table = headers.iter().find(|header| header.p_type == libc::PT_PHDR).ok_or(Errno::ENOEXEC)?;
    let base = (headers.as_ptr() as usize).wrapping_sub(number(table.p_vaddr));
    // SAFETY: asks for a number.
    let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).map_err(|_| Errno::ENOSYS)?;
    let sealed = headers.iter().find(|header| header.p_type == libc::PT_GNU_RELRO).map(|header| {
        let start = base.wrapping_add(number(header.p_vaddr));
        down(start, page)..down(start.wrapping_add(number(header.p_memsz)), page)
    });
    let loaded = headers.iter().filter(|header| header.p_type == libc::PT_LOAD && header.p_filesz > 0);
    Ok(loaded.flat_map(|header| parts(header, base, page, sealed.as_ref())).collect())
}

/// A segment; two, where the loader has made its first part, which is `sealed`, read-only once it was filled in.
fn parts(header: &Header, base: usize, page: usize, sealed: Option<&Range<usize>>) -> Vec<Segment> {
    let start = base.wrapping_add(number(header.p_vaddr));
    let memory = down(start, page)..down(start.wrapping_add(number(header.p_filesz)).wrapping_add(page - 1), page);
    let offset = i64::try_from(down(number(header.p_offset), page)).unwrap_or(i64::MAX);
    let allows = |flag, protection| if header.p_flags & flag != 0 { protection } else { 0 };
    let protection = allows(libc::PF_R, libc::PROT_READ)
        | allows(libc::PF_W, libc::PROT_WRITE)
        | allows(libc::PF_X, libc::PROT_EXEC);
    let is_own = header.p_flags & libc::PF_W != 0;
    let sealed = sealed.filter(|sealed| is_own && sealed.contains(&memory.start));
    let end = sealed.map_or(memory.start, |sealed| sealed.end.min(memory.end));
    let part = |memory: Range<usize>, protection| Segment { memory, offset, protection, is_own };
    let all = [part(memory.start..end, libc::PROT_READ), part(end..memory.end, protection)];
    all.into_iter().filter(|part| !part.memory.is_empty()).collect()
}

/// The program's own description, which the kernel has told it where to find: see getauxval(3), elf(5).
fn headers() -> Result<&'static [Header], Errno> {
    // SAFETY: reads what the kernel has given to this process.
    let [address, size, count] =
        [libc::AT_PHDR, libc::AT_PHENT, libc::AT_PHNUM].map(|which| unsafe { libc::getauxval(which) });
    let is_known = address != 0 && number(size) == size_of::<Header>();
    let table = std::ptr::with_exposed_provenance::<Header>(number(address));
    // SAFETY: the table is a part of the program, of so many headers of this size, and is never written.
    is_known.then(|| unsafe { std::slice::from_raw_parts(table, number(count)) }).ok_or(Errno::ENOEXEC)
}

fn down(address: usize, page: usize) -> usize {
    address & !(page - 1)
}

/// The same on all machines for which there are filters of system calls: those of 64 bits.
fn number(value: u64) -> usize {
    value as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_is_read_as_the_kernel_numbers_its_fields() {
        let fields: Vec<String> = (3..=52).map(|number| number.to_string()).collect();
        let layout = Layout::parse(&format!("1 (a) b) {}", fields.join(" "))).unwrap();
        assert_eq!((layout.code, layout.data, layout.heap, layout.stack), ([26, 27], [45, 46], 47, 28));
        assert_eq!((layout.arguments, layout.environment), ([48, 49], [50, 51]));
        assert_eq!(Layout::parse("1 (a) S 1 2"), None);
    }

    #[test]
    fn a_segment_is_split_where_the_loader_has_closed_it() {
        let header = Header {
            p_type: libc::PT_LOAD,
            p_flags: libc::PF_R | libc::PF_W,
            p_offset: 0x2f10,
            p_vaddr: 0x3f10,
            p_paddr: 0,
            p_filesz: 0x2000,
            p_memsz: 0x9000,
            p_align: 0x1000,
        };
        let (read, write) = (libc::PROT_READ, libc::PROT_READ | libc::PROT_WRITE);
        let parts = |sealed: Option<Range<usize>>| {
            let parts = parts(&header, 0x10000, 0x1000, sealed.as_ref());
            parts.into_iter().map(|part| (part.memory, part.protection, part.is_own)).collect::<Vec<_>>()
        };
        assert_eq!(parts(None), [(0x13000..0x16000, write, true)]);
        let two = [(0x13000..0x15000, read, true), (0x15000..0x16000, write, true)];
        assert_eq!(parts(Some(0x13000..0x15000)), two);
        assert_eq!(parts(Some(0x13000..0x17000)), [(0x13000..0x16000, read, true)]);
    }
}
